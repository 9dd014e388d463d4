"""Runs whose workers wait for room on a disk, as their heartbeats tell."""

from __future__ import annotations

from collections.abc import Callable

from mor_trainer import metrics


class DiskWaits:
    """Delayed write of each run that waits for room. It stays in memory: every heartbeat names it again."""

    def __init__(self, begun: Callable[[str, str], None], ended: Callable[[str], None]) -> None:
        """``begun`` is called with a run and what it waits to write when its wait begins, ``ended`` with the run when
        it is over."""
        self._begun, self._ended = begun, ended
        self._waits: dict[str, str] = {}

    def of(self, run: str) -> str | None:
        """Return what a run waits to write, if it waits."""
        return self._waits.get(run)

    def note(self, run: str, waits: str | None) -> bool:
        """Record what a run waits to write; ``None`` ends the wait. Return whether that is new."""
        known = self._waits.pop(run, None)
        if waits is not None:
            self._waits[run] = waits
        if waits != known:
            metrics.observe_disk_full(run, waits is not None)
        if waits is not None and known is None:
            self._begun(run, waits)
        if waits is None and known is not None:
            self._ended(run)
        return waits != known
