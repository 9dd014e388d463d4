"""Arguments with which vLLM is started, and their reasons."""

from __future__ import annotations

from typing import Any

from mor_core.vllm_families import check_vllm_family
from vllm.config import WeightTransferConfig

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.weights.base_checkpoint import BaseCheckpoint

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts as ``max_lora_rank``."""
_LINKS = ".base-links"
"""Folder in ``weights_dir`` with links to the base checkpoint's files, where others lie beside them."""


def engine_arguments(settings: RolloutSettings, base: BaseCheckpoint, codec: PromptCodec) -> dict[str, Any]:
    """Return the arguments of ``AsyncEngineArgs``.

    Raises:
        Invalid: vLLM does not serve the model's family.
    """
    check_vllm_family(
        base.model,
        base.config,
        device=settings.device,
        dtype=settings.dtype,
        adapters=settings.lora_max_rank > 0,
        images=settings.max_images,
    )
    arguments: dict[str, Any] = {
        "model": str(base.link_model_files(settings.weights_dir / _LINKS)),
        # Left to itself, vLLM prefers Mistral's own files (consolidated.safetensors, params.json, tekken.json).
        "config_format": "hf",
        "load_format": "safetensors",
        "tokenizer_mode": "hf",
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "block_size": settings.block_size,
        "enforce_eager": settings.eager,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "enable_log_requests": False,  # its lines hold prompts
        "seed": 0,
        # Only the prompt record sets how to sample, not the defaults in the checkpoint's generation_config.
        "generation_config": "vllm",
        # Log-probabilities of the distribution that tokens are sampled from, see ``mor_core.sampling``.
        "logprobs_mode": "processed_logprobs",
        "logits_processors": ["mor_rollout.engines.vllm.worker_extension:ForbidTokens"],
        "additional_config": {"mor_forbidden_token_ids": list(codec.forbidden)},
        "worker_extension_cls": "mor_rollout.engines.vllm.worker_extension.WeightsExtension",
        "limit_mm_per_prompt": _modalities(settings, codec),
        # The renderer must return processed pixels to be compared, so none may be replaced by a cache's reference.
        "mm_processor_cache_gb": 0,
        # Some models would normalise pixels on the device, not in the processor, to other values than the trainer's.
        "mm_device_do_normalize": False,
    }
    if settings.device == "cpu":
        arguments["kv_cache_memory_bytes"] = settings.kv_cache_bytes
        # vLLM 0.32 on CPU fails when a prompt with its own seed is prefilled in parts ("CPU Generator does not use
        # offset"). So prompts are prefilled whole, and a step and the encoder cache have room for all in flight.
        arguments["enable_chunked_prefill"] = False
        if base.has_states:  # vLLM keeps prefixes of recurrent states with chunked prefill only
            arguments["enable_prefix_caching"] = False
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


def _modalities(settings: RolloutSettings, codec: PromptCodec) -> dict[str, int]:
    limits = {"image": settings.max_images}
    if getattr(codec.processor, "video_processor", None) is not None:
        limits["video"] = 0
    return limits
