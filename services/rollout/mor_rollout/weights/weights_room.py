"""Room for pulled weights: that of the disk, or less where a limit of the volume is set."""

from __future__ import annotations

import shutil

from mor_core import disk_full

from mor_rollout.config import RolloutSettings


class WeightsRoom:
    """Room in ``weights_dir``."""

    def __init__(self, settings: RolloutSettings) -> None:
        self._folder = settings.weights_dir
        self._limit = settings.weights_bytes

    def total(self) -> int:
        """Return the bytes that the folder may hold."""
        disk = shutil.disk_usage(disk_full.existing(self._folder)).total
        return disk if self._limit is None else min(disk, self._limit)

    def free(self) -> int:
        """Return the bytes that may be written."""
        disk = disk_full.free_bytes(self._folder)
        return disk if self._limit is None else min(disk, self._limit - disk_full.folder_bytes(self._folder))
