"""Environment variables of torch and vLLM. Both read them once, when they are imported."""

from __future__ import annotations

import os
import sys

from mor_rollout.config import RolloutSettings


def prepare(settings: RolloutSettings) -> None:
    """Set thread counts and vLLM's switches for this process and the engine's. Keep values that are already set."""
    defaults = {
        "OMP_NUM_THREADS": str(settings.threads),
        "MKL_NUM_THREADS": str(settings.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CONFIGURE_LOGGING": "1",
        # Never DEBUG, whose lines hold prompts.
        "VLLM_LOGGING_LEVEL": "WARNING" if settings.log_level in ("debug", "info") else "ERROR",
    }
    if settings.device == "cpu":
        # Spinning threads that are bound to fixed cores would starve the other processes of the machine.
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if settings.eager:
            defaults["TORCH_COMPILE_DISABLE"] = "1"
        if settings.tensor_parallel_size == 1:
            # The worker then runs in the engine's process: half the start time, and no polling of shared memory.
            defaults["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    torch = sys.modules.get("torch")
    if torch is not None and settings.device == "cpu" and torch.get_num_threads() != settings.threads:
        torch.set_num_threads(settings.threads)
