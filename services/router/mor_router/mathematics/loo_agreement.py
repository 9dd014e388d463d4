"""How much a client agrees with the others, compared with how much those agree among themselves.

With y_k the share of the pairs of responses of a group that client k ranks as the mixture of all others does (a tie
counts one half):

    z_k = ( 1 + y_k − mean_{j≠k} y_j ) / 2            in [0, 1]; one half where it agrees as much as they do

A policy whose responses come closer to each other makes everybody agree less; z takes that out.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray

LEAST_CLIENTS = 3
"""Of two, neither is the one that disagrees."""
_SLACK = 0.1
_Z = 1.6449  # one-sided 95 %


def of_group(
    calibrated: Float[ndarray, "clients group"], weights: Float[ndarray, " clients"]
) -> Float[ndarray, " clients"]:
    """z of each client in one group.

    Raises:
        ValueError: fewer than three clients, or than two responses.
    """
    if len(weights) < LEAST_CLIENTS or calibrated.shape[1] < 2:
        raise ValueError(f"{len(weights)} clients and {calibrated.shape[1]} responses; 3 and 2 at least are needed")
    first, second = np.array(list(itertools.combinations(range(calibrated.shape[1]), 2))).T
    return np.asarray(of_pairs((calibrated[:, first] - calibrated[:, second]).T, weights[None, :]).mean(axis=0))


def of_pairs(
    differences: Float[ndarray, "pairs clients"], weights: Float[ndarray, "#pairs clients"]
) -> Float[ndarray, "pairs clients"]:
    """z of each client for single pairs, from calibrated differences."""
    own = weights * differences
    others = own.sum(axis=1, keepdims=True) - own
    agrees = (np.sign(differences) * np.sign(others) + 1) / 2
    rest = (agrees.sum(axis=1, keepdims=True) - agrees) / (agrees.shape[1] - 1)
    return np.asarray((1 + agrees - rest) / 2)


def least(outcomes: Float[ndarray, " pairs"], stakes: Float[ndarray, " pairs"]) -> float:
    """What the mean of z is tested against later: the lower 95 % limit of its weighted mean here, less 0.1."""
    total = float(stakes.sum())
    if not total:
        return 0.0
    mean = float(stakes @ outcomes / total)
    error = math.sqrt(float(np.square(stakes) @ np.square(outcomes - mean))) / total
    return max(0.0, mean - _Z * error - _SLACK)
