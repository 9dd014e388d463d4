"""Leave-one-out agreement: how much a client agrees with the others, relative to their agreement among themselves.

Deviation from a plain leave-one-out agreement y_k: the mean agreement of the other clients is subtracted. A policy
whose responses come closer to each other lowers every y; z removes that.

With y_k the share of the pairs of responses of a group that client k ranks as the mixture of all others does (a tie
counts one half):

    z_k = ( 1 + y_k − mean_{j≠k} y_j ) / 2            in [0, 1]; one half where all agree equally
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from mor_core.intervals import Z_95_ONE_SIDED
from numpy import ndarray

LEAST_CLIENTS = 3
"""With two clients, neither can be identified as the one that disagrees."""
_SLACK = 0.1
"""Loss of agreement below its lower limit at the fit that does not count."""


def of_group(
    calibrated: Float[ndarray, "clients group"], weights: Float[ndarray, " clients"]
) -> Float[ndarray, " clients"]:
    """Compute z of each client in one group.

    Raises:
        ValueError: fewer than three clients, or than two responses.
    """
    if len(weights) < LEAST_CLIENTS or calibrated.shape[1] < 2:
        raise ValueError(f"got {len(weights)} clients and {calibrated.shape[1]} responses; at least 3 and 2 are needed")
    first, second = _pairs(calibrated.shape[1])
    return np.asarray(of_pairs((calibrated[:, first] - calibrated[:, second]).T, weights[None, :]).mean(axis=0))


@lru_cache(maxsize=64)
def _pairs(size: int) -> tuple[ndarray, ndarray]:
    """Return the first and the second places of all pairs of a group of this size."""
    first, second = np.triu_indices(size, 1)
    return first, second


def of_pairs(
    differences: Float[ndarray, "pairs clients"], weights: Float[ndarray, "#pairs clients"]
) -> Float[ndarray, "pairs clients"]:
    """Compute z of each client for single pairs, from calibrated differences."""
    own = weights * differences
    others = own.sum(axis=1, keepdims=True) - own
    agrees = (np.sign(differences) * np.sign(others) + 1) / 2
    rest = (agrees.sum(axis=1, keepdims=True) - agrees) / (agrees.shape[1] - 1)
    return np.asarray((1 + agrees - rest) / 2)


def disagreement(
    differences: Float[ndarray, "pairs clients"],
    weights: Float[ndarray, "#pairs clients"],
    influence: Float[ndarray, "pairs clients"],
) -> Float[ndarray, " clients"]:
    """Compute the share of single pairs that each client ranks against the mixture of all others, by its influence."""
    own = weights * differences
    against = own * (own.sum(axis=1, keepdims=True) - own) < 0
    total = influence.sum(axis=0)
    return np.asarray(np.divide((influence * against).sum(axis=0), total, out=np.ones_like(total), where=total > 0))


def lower_limit(outcomes: Float[ndarray, " pairs"], stakes: Float[ndarray, " pairs"]) -> float:
    """Compute the bound that later means of z are tested against: the lower 95 % limit of the mean, less 0.1."""
    total = float(stakes.sum())
    if not total:
        return 0.0
    mean = float(stakes @ outcomes / total)
    error = math.sqrt(float(np.square(stakes) @ np.square(outcomes - mean))) / total
    return max(0.0, mean - Z_95_ONE_SIDED * error - _SLACK)
