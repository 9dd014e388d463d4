"""Is a mean still at least m? A test that may be looked at after every observation, by betting against it.

    E = mean_λ Π_n ( 1 + λ v_n (m − y_n) )       0 ≤ y_n, v_n ≤ 1,   λ ∈ {0.1, 0.2, 0.4, 0.6, 0.8} / (1 − m)

v_n is the stake of observation n, fixed before y_n is seen. While E[v_n (m − y_n) | past] ≤ 0, each product is a
non-negative supermartingale from 1, and so is their mean; by Ville's inequality it ever reaches 1/α with probability at
most α (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting"). The mean of several such
tests of one hypothesis is one again.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_SHARES = np.array([0.1, 0.2, 0.4, 0.6, 0.8])
"""λ as shares of the largest that cannot lose everything."""


def log_evidence(
    outcomes: Float[ndarray, " observations"], least_mean: float, stakes: Float[ndarray, " observations"] | None = None
) -> Float[ndarray, " observations"]:
    """log E after each observation: evidence that the mean is below ``least_mean``.

    Raises:
        ValueError: ``least_mean`` is not in [0, 1).
    """
    if not 0 <= least_mean < 1:
        raise ValueError(f"a mean in [0, 1) can be bet against, not {least_mean}")
    stakes = np.ones(len(outcomes)) if stakes is None else stakes
    gains = np.log1p(_SHARES[:, None] / (1 - least_mean) * (stakes * (least_mean - outcomes))).cumsum(axis=1)
    return log_mean(gains)


class Bet:
    """The same test, one observation at a time."""

    def __init__(self, least_mean: float) -> None:
        self._least_mean = least_mean
        self._logs = np.zeros(len(_SHARES))
        self.count = 0
        """Observations so far."""

    def add(self, outcome: float, stake: float) -> None:
        self._logs += np.log1p(_SHARES / (1 - self._least_mean) * (stake * (self._least_mean - outcome)))
        self.count += 1

    @property
    def log_evidence(self) -> float:
        """log E now."""
        return float(log_mean(self._logs[:, None])[0])


def log_mean(logs: Float[ndarray, "tests observations"]) -> Float[ndarray, " observations"]:
    """log of the mean over tests of E, from log E."""
    top = logs.max(axis=0)
    return np.asarray(top + np.log(np.exp(logs - top).mean(axis=0)))
