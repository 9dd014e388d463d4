"""Interval of a proportion."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""Quantile of the normal distribution for a two-sided interval of 95 %."""
Z_95_ONE_SIDED = 1.6448536269514722
"""The same for a one-sided limit of 95 %."""


def wilson(successes: float, trials: float, z: float = Z_95) -> tuple[float, float]:
    """Return the score interval of ``successes`` in ``trials``, within 0 and 1 (Wilson 1927).

    Raises:
        ValueError: ``trials`` is not positive.
    """
    if trials <= 0:
        raise ValueError(f"an interval needs at least one trial, got {trials}")
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
