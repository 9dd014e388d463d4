"""Peak memory of a process and all its descendants."""

from __future__ import annotations

import threading

import psutil


class PeakMemory:
    """Peak, sampled every second, of the summed proportional set sizes of a process and all its descendants, bytes."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._root = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            self.bytes = max(self.bytes, self._now())

    def _now(self) -> int:
        total = 0
        for process in [self._root, *self._descendants()]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:  # the process ended meanwhile
                continue
        return total

    def _descendants(self) -> list[psutil.Process]:
        try:
            return list(self._root.children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
