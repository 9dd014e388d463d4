"""E-process: an anytime-valid test of whether a mean is still at least m.

Deviations from Waudby-Smith & Ramdas (2024, "Estimating means of bounded random variables by betting"): the bets λ are
a fixed grid, averaged instead of adapted, and each observation has a stake v_n.

    E = mean_λ Π_n ( 1 + λ v_n (m − y_n) )       0 ≤ y_n, v_n ≤ 1,   λ ∈ {0.1, 0.2, 0.4, 0.6, 0.8} / (1 − m)

The stake v_n of observation n is fixed before y_n is seen. While E[v_n (m − y_n) | past] ≤ 0, each product is a
non-negative supermartingale from 1, and so is their mean. By Ville's inequality it ever reaches 1/α with probability at
most α. The mean of several such tests of one hypothesis is such a test again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

BETS = (0.1, 0.2, 0.4, 0.6, 0.8)
"""λ as shares of the largest λ that keeps every product positive."""


def log_evidence(
    outcomes: Float[ndarray, " observations"],
    least_mean: float,
    stakes: Float[ndarray, " observations"] | None = None,
    *,
    bets: Sequence[float] = BETS,
) -> Float[ndarray, " observations"]:
    """Compute log E after each observation: the evidence that the mean is below ``least_mean``.

    Fewer ``bets`` cost less evidence where the alternative is known; they are shares of the largest λ.

    Raises:
        ValueError: ``least_mean`` is not in [0, 1).
    """
    if not 0 <= least_mean < 1:
        raise ValueError(f"got least mean {least_mean}; a mean in [0, 1) is needed")
    stakes = np.ones(len(outcomes)) if stakes is None else stakes
    gains = np.log1p(np.array(bets)[:, None] / (1 - least_mean) * (stakes * (least_mean - outcomes))).cumsum(axis=1)
    return log_mean(gains)


class EProcess:
    """The test of ``log_evidence``, one observation at a time."""

    def __init__(self, least_mean: float) -> None:
        self._least_mean = least_mean
        self._bets = [bet / (1 - least_mean) for bet in BETS]
        self._logs = [0.0] * len(BETS)
        self.count = 0
        """Observations so far."""

    def add(self, outcome: float, stake: float) -> None:
        """Update E with one observation; both arguments lie in [0, 1]."""
        gain = stake * (self._least_mean - outcome)
        self._logs = [log + math.log1p(bet * gain) for log, bet in zip(self._logs, self._bets, strict=True)]
        self.count += 1

    @property
    def log_evidence(self) -> float:
        """log E after all observations."""
        top = max(self._logs)
        return top + math.log(sum(math.exp(log - top) for log in self._logs) / len(self._logs))


def log_mean(logs: Float[ndarray, "tests observations"]) -> Float[ndarray, " observations"]:
    """Compute the log of the mean of E over tests, from log E."""
    top = logs.max(axis=0)
    return np.asarray(top + np.log(np.exp(logs - top).mean(axis=0)))
