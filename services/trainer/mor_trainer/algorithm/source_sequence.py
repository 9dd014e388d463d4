"""Sequence in which the sources of a run are drawn: exact shares at every draw, of weights that may change by step.

The *expected draws* of a source after n draws are the sum of its shares so far. Its k-th draw may happen at the first
draw after which more than k−1 are expected, and is due at the draw after which k are. Each draw takes, of the sources
that may be drawn, the one whose draw is due first. Each count then equals its expectation rounded down or up, at every
draw: the expectation is itself a fractional schedule that meets all these times, so a whole one exists, and earliest
deadline first finds it (Horn 1974; as a fairness of shares: Baruah et al., "Proportionate progress", 1996).

Every machine computes the same sequence: shares are rounded to integers, and the arithmetic before that is exactly
rounded.
"""

from __future__ import annotations

import math
import sys
import threading
from array import array
from bisect import bisect_left
from collections.abc import Sequence

from mor_core.prompt_sources import WeightPoints, weight_at

_WHOLE = 1 << 32
"""Units of all shares together; a share is rounded to one unit, which shifts no count within a billion draws."""
_BLOCK = 1024
"""Draws between counts that are kept; it bounds the part of the sequence that one count looks at."""
_NEVER = sys.maxsize


class SourceSequence:
    """Sequence of the sources of a run, computed as far as it has been read, at a byte a draw.

    Several threads may read it.
    """

    def __init__(self, schedules: Sequence[WeightPoints], draws_per_step: int) -> None:
        """``schedules``: weights of each source, at most 255 of them. The weights of step t hold for the draws numbered
        from ``t * draws_per_step`` on, whatever the step that trains on them."""
        self._schedules = schedules
        self._draws_per_step = draws_per_step
        self._last_step = max(points[-1][0] for points in schedules)
        """Step from which on the shares are constant."""
        self._last_shares = self._shares(self._last_step)
        self._sums = [array("q", [0]) for _ in schedules]
        """By source and step: the sum of its shares in the steps before, in units for one draw a step."""
        self._drawn = bytearray()
        """Source of each draw."""
        self._counts = [0] * len(schedules)
        self._kept_counts: list[tuple[int, ...]] = []
        """Draws of each source before every ``_BLOCK``-th draw."""
        self._windows = [self._window(source) for source in range(len(schedules))]
        self._lock = threading.Lock()

    def source(self, number: int) -> int:
        """Return the source of a draw."""
        if len(self._schedules) == 1:
            return 0
        self._extend(number + 1)
        return self._drawn[number]

    def count(self, source: int, number: int) -> int:
        """Return how often a source is drawn before draw ``number``."""
        if len(self._schedules) == 1:
            return number
        self._extend(number + 1)
        block = number // _BLOCK
        return self._kept_counts[block][source] + self._drawn.count(source, block * _BLOCK, number)

    def expected(self, source: int, number: int) -> float:
        """Return the expected draws of a source before draw ``number``."""
        whole = min(number // self._draws_per_step, self._last_step)
        with self._lock:
            self._sum_up(whole + 1)
        sums = self._sums[source]
        share = sums[whole + 1] - sums[whole] if whole < self._last_step else self._last_shares[source]
        return (self._draws_per_step * sums[whole] + (number - whole * self._draws_per_step) * share) / _WHOLE

    def _extend(self, length: int) -> None:
        if length <= len(self._drawn):
            return
        with self._lock:
            for number in range(len(self._drawn), length):
                if number % _BLOCK == 0:
                    self._kept_counts.append(tuple(self._counts))
                source = min((due, one) for one, (begins, due) in enumerate(self._windows) if begins <= number)[1]
                self._counts[source] += 1
                self._windows[source] = self._window(source)
                self._drawn.append(source)

    def _window(self, source: int) -> tuple[int, int]:
        """Return the numbers of the first and the last draw that may be the next one of a source."""
        units = self._counts[source] * _WHOLE
        return self._expecting(source, units + 1) - 1, self._expecting(source, units + _WHOLE) - 1

    def _expecting(self, source: int, units: int) -> int:
        """Return the least number of draws after which ``units`` of a source are expected."""
        sums, draws = self._sums[source], self._draws_per_step
        while draws * sums[-1] < units and len(sums) <= self._last_step:
            self._sum_up(2 * len(sums))
        if draws * sums[-1] < units:
            step, share = len(sums) - 1, self._last_shares[source]
        else:
            step = bisect_left(sums, -(-units // draws)) - 1
            share = sums[step + 1] - sums[step]
        return step * draws - (draws * sums[step] - units) // share if share else _NEVER

    def _sum_up(self, steps: int) -> None:
        """Sum the shares up of the first ``steps`` steps, or of those up to the last point of a schedule."""
        for step in range(len(self._sums[0]) - 1, min(steps, self._last_step)):
            for sums, share in zip(self._sums, self._shares(step), strict=True):
                sums.append(sums[-1] + share)

    def _shares(self, step: int) -> list[int]:
        """Return the share of each source at a step in units, rounded by largest remainder."""
        weights = [weight_at(points, step) for points in self._schedules]
        total = math.fsum(weights)
        exact = [weight / total * _WHOLE for weight in weights]
        shares = [int(share) for share in exact]
        by_remainder = sorted(range(len(exact)), key=lambda source: shares[source] - exact[source])
        for source in by_remainder[: _WHOLE - sum(shares)]:
            shares[source] += 1
        return shares
