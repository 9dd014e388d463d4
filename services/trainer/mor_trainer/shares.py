"""Where a step's time went."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Literal

Share = Literal["waiting", "processing", "forward_backward", "optimiser", "publication", "checkpoint", "unaccounted"]


class TimeShares:
    """Seconds of one step by named share; what no share covers is ``unaccounted``. Shares do not nest."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._seconds: dict[Share, float] = dict.fromkeys(
            ("waiting", "processing", "forward_backward", "optimiser", "publication", "checkpoint"), 0.0
        )

    @contextlib.contextmanager
    def measure(self, share: Share) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[share] += time.perf_counter() - begin

    def finish(self) -> tuple[float, dict[str, float]]:
        """Seconds since the beginning, and their shares."""
        total = time.perf_counter() - self._begin
        named: dict[str, float] = {str(share): seconds for share, seconds in self._seconds.items()}
        return total, {**named, "unaccounted": max(0.0, total - sum(named.values()))}
