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


def exact_lower(successes: int, trials: int, level: float = 0.05) -> float:
    """Return the one-sided lower limit of a proportion, exact for the binomial (Clopper and Pearson 1934).

    It exceeds the true proportion with a probability of at most ``level``.
    """
    if successes <= 0:
        return 0.0

    def as_many(share: float) -> float:
        """Probability of ``successes`` or more."""
        logs = (
            math.lgamma(trials + 1)
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * math.log(share)
            + (trials - k) * math.log1p(-share)
            for k in range(successes, trials + 1)
        )
        return math.fsum(map(math.exp, logs))

    low, high = 0.0, successes / trials
    for _ in range(50):  # far below the precision that anybody reads
        middle = (low + high) / 2
        if as_many(middle) < level:
            low = middle
        else:
            high = middle
    return low
