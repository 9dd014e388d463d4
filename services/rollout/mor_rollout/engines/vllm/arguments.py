"""How vLLM is set up, and why."""

from __future__ import annotations

from typing import Any

from vllm.config import WeightTransferConfig

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompts import PromptEncoder
from mor_rollout.weights.base import BaseModel

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def engine_arguments(settings: RolloutSettings, base: BaseModel, encoder: PromptEncoder) -> dict[str, Any]:
    """Arguments of ``AsyncEngineArgs``."""
    arguments: dict[str, Any] = {
        "model": str(base.folder),
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "block_size": settings.block_size,
        "enforce_eager": settings.eager,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "seed": 0,
        # Nothing but the record says how to sample: defaults of the checkpoint's generation_config do not slip in.
        "generation_config": "vllm",
        # Log-probabilities of the distribution sampled from, see ``mor_core.sampling``.
        "logprobs_mode": "processed_logprobs",
        "logits_processors": ["mor_rollout.engines.vllm.worker:ForbidTokens"],
        "additional_config": {"mor_forbidden_token_ids": list(encoder.forbidden)},
        "worker_extension_cls": "mor_rollout.engines.vllm.worker.WeightsExtension",
        "limit_mm_per_prompt": _modalities(settings, encoder),
        # Processed pixels must come out of the renderer whole to be compared, so none are kept behind its back.
        "mm_processor_cache_gb": 0,
        # Some models would normalise pixels on the device instead of in the processor: other values than the trainer's.
        "mm_device_do_normalize": False,
    }
    if settings.device == "cpu":
        arguments["kv_cache_memory_bytes"] = settings.kv_cache_bytes
        # vLLM 0.32 on CPU dies when a prompt with a seed of its own is prefilled in parts ("CPU Generator does not use
        # offset"), so whole prompts only, and room in a step and in the encoder cache for all that can be in flight.
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = settings.max_batched_tokens
    else:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    if settings.weight_transfer != "http":
        arguments["weight_transfer_config"] = WeightTransferConfig(backend=settings.weight_transfer)
    if settings.lora_max_rank:
        arguments["enable_lora"] = True
        arguments["max_loras"] = 1
        arguments["max_lora_rank"] = next(rank for rank in _LORA_RANKS if rank >= settings.lora_max_rank)
    return arguments


def _modalities(settings: RolloutSettings, encoder: PromptEncoder) -> dict[str, int]:
    limits = {"image": settings.max_images}
    if getattr(encoder.processor, "video_processor", None) is not None:
        limits["video"] = 0
    return limits
