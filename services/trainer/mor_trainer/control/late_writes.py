"""Writes that the database refuses while its disk is full, and takes when there is room again."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from mor_trainer.control.database import HistoryUnavailable


class LateWrites:
    """Writes of which nobody waits for the end, each tried until the database takes it.

    They are in memory, one for each key, so that their number is bounded: a later write replaces an earlier one.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, Callable[[], object]] = {}

    def write(self, key: Hashable, write: Callable[[], object]) -> None:
        """Do ``write`` now, or with a later ``flush`` if the database takes nothing now."""
        self._waiting[key] = write
        self.flush()

    def clear(self) -> None:
        """Forget the writes that wait: another process owned the database meanwhile."""
        self._waiting.clear()

    def flush(self) -> None:
        """Do the writes that wait, as far as the database takes them."""
        while self._waiting:
            key = next(iter(self._waiting))
            write = self._waiting.pop(key)
            try:
                write()
            except HistoryUnavailable:
                self._waiting = {key: write, **self._waiting}
                return
