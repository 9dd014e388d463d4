"""Where a step's time went."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal

Share = Literal["waiting", "processing", "forward_backward", "optimiser", "publication", "checkpoint", "unaccounted"]


class TimeShares:
    """Seconds of one step by named share; what no share covers is ``unaccounted``. Shares do not nest."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begin = clock()
        self._seconds: dict[Share, float] = dict.fromkeys(
            ("waiting", "processing", "forward_backward", "optimiser", "publication", "checkpoint"), 0.0
        )

    @contextlib.contextmanager
    def measure(self, share: Share) -> Iterator[None]:
        begin = self._clock()
        try:
            yield
        finally:
            self._seconds[share] += self._clock() - begin

    def finish(self) -> tuple[float, dict[str, float]]:
        """Seconds since the beginning, and their shares."""
        total = self._clock() - self._begin
        named: dict[str, float] = {str(share): seconds for share, seconds in self._seconds.items()}
        return total, {**named, "unaccounted": max(0.0, total - sum(named.values()))}
