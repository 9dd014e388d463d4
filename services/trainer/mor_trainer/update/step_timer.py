"""Where a step's time went."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal, get_args

Share = Literal["waiting", "processing", "forward_backward", "optimiser", "publication", "checkpoint", "unaccounted"]


class TimeShares:
    """Seconds of one step by named share; what no share covers is ``unaccounted``.

    A share that is measured within another takes its time from it, so that all of them add up to the step.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._current: Share = "unaccounted"
        self.restart()

    def restart(self) -> None:
        """The step begins now: it was interrupted, and what was measured does not belong to it."""
        self.began_at = time.time()
        """Unix time, seconds."""
        self._since = self._clock()
        self._seconds: dict[Share, float] = dict.fromkeys(get_args(Share), 0.0)

    @contextlib.contextmanager
    def measure(self, share: Share) -> Iterator[None]:
        outer = self._turn_to(share)
        try:
            yield
        finally:
            self._turn_to(outer)

    def _turn_to(self, share: Share) -> Share:
        now = self._clock()
        self._seconds[self._current] += now - self._since
        self._since = now
        previous, self._current = self._current, share
        return previous

    def finish(self) -> tuple[float, dict[str, float]]:
        """Seconds since the beginning, and their shares."""
        self._turn_to("unaccounted")
        return sum(self._seconds.values()), {str(share): seconds for share, seconds in self._seconds.items()}
