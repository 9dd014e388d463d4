"""Shared memory of vLLM's processes: what they need, and how to make room for it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import EngineError

_FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux has shared memory
_LARGEST_QUEUE = 256 << 20
"""Bytes: vLLM's largest queue between two processes is ten messages of 24 MiB each, and it needs some for itself."""
_CURE = (
    "give the container more (docker run --shm-size=1g; the chart: rollout.sharedMemory), or remount it "
    "(mount -o remount,size=1g /dev/shm); with MOR_TENSOR_PARALLEL_SIZE=1 the engine needs none"
)


def check_shared_memory(settings: RolloutSettings, folder: Path = _FOLDER) -> None:
    """Compare the free shared memory with what the processes of one engine exchange at least. One process needs none.

    A container has 64 MiB by default. vLLM notices that after it has started all processes, or dies of it later.

    Raises:
        EngineError: it is too small.
    """
    if settings.tensor_parallel_size == 1 or sys.platform != "linux":
        return
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    if free < _LARGEST_QUEUE:
        raise EngineError(
            f"{folder} has {free >> 20} MiB free, and the {settings.tensor_parallel_size} processes of an engine "
            f"(MOR_TENSOR_PARALLEL_SIZE) need {_LARGEST_QUEUE >> 20} MiB of shared memory; {_CURE}"
        )
