"""Budget of the time that groups spend waiting for one client in vain.

A token bucket, in seconds. It starts full and refills at a fixed share of all time, so that over any period T groups
lose at most ``most_s + share * T`` to one client, whatever the pattern of its failures. Waits of groups that wait at
the same time count once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class WaitBudget:
    """Seconds for which groups may still wait for one client in vain, in this process."""

    def __init__(self, most_s: float, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_s = most_s
        self._share = share
        self._clock = clock
        self._left_s = most_s
        self._refilled_at = clock()
        self._counted_until = -math.inf

    def left_s(self) -> float:
        """Return the seconds that are left; 0 or less: groups no longer wait for the client."""
        now = self._clock()
        self._left_s = min(self._most_s, self._left_s + self._share * (now - self._refilled_at))
        self._refilled_at = now
        return self._left_s

    def spend(self, begin: float, end: float) -> None:
        """Count a wait from ``begin`` to ``end``, both by the clock; ``end`` may lie in the future."""
        self.left_s()
        self._left_s -= max(0.0, end - max(begin, self._counted_until))
        self._counted_until = max(self._counted_until, end)
