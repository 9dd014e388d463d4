"""The gate: weight of each client, given the input and the objective.

Deviation from MoR's learned router (arXiv 2602.00485): weights are shares of evidence with an entropy floor, not a
softmax over clients. Under a softmax, two good clients are worth no more than one.

    w_k(x, o) = (1 − ε) · β_k(x) / Σ_j β_j(x) + ε / K            over the K available clients

β_k(x) is the evidence of ``regional_slopes``. Each objective has its own regions and evidence, fitted on its anchors.
ε is the smallest share for which no evidence can push the entropy of w below the floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray


class NoClientAvailable(ValueError):
    """No client can be weighed."""


@dataclass(frozen=True)
class GateEvaluation:
    """Evaluation of a gate at some inputs."""

    weights: Float[ndarray, "inputs clients"]
    """w(x, o); sums to 1 over the available clients."""
    slopes: Float[ndarray, "inputs clients"]
    """Slopes of all clients, logits per standardised unit."""
    fit_weights: Float[ndarray, "inputs clients"]
    """w(x, o) over all clients of the gate, available or not."""
    ood_score: Float[ndarray, " inputs"]
    """0 where the anchors cover the input, towards 1 far from all of them."""


def weights(
    evidence: Float[ndarray, "inputs clients"], available: Bool[ndarray, " clients"], *, entropy_floor: float
) -> Float[ndarray, "inputs clients"]:
    """Compute w(x, o): it sums to 1 over the available clients, and is uniform where none of them has evidence.

    Raises:
        ValueError: no client is available.
    """
    count = int(available.sum())
    if not count:
        raise NoClientAvailable("no client is available; at least one is needed")
    usable = evidence * available
    total = usable.sum(axis=1, keepdims=True)
    even = available / count
    shares = np.divide(usable, total, out=np.tile(even, (len(usable), 1)), where=total > 1e-12)
    share = uniform_share(count, entropy_floor)
    return np.asarray((1 - share) * shares + share * even)


def entropy(mixture: Float[ndarray, "*batch clients"]) -> Float[ndarray, "*batch"]:
    """Compute the entropy of mixture weights, nats."""
    safe = np.where(mixture > 0, mixture, 1.0)
    return np.asarray(0.0 - (safe * np.log(safe)).sum(axis=-1))


@cache
def uniform_share(clients: int, floor: float) -> float:
    """Compute ε, which keeps the entropy of any mixture of ``clients`` at or above ``floor`` · log(clients).

    Entropy is concave, so it is lowest where one client has all the rest. Bisection finds the share there.

    Raises:
        ValueError: ``floor`` is not in [0, 1].
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"got entropy floor {floor}; a share of the largest entropy in [0, 1] is needed")
    if clients < 2 or floor == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):  # to the last bit of a double
        middle = (low + high) / 2
        other = middle / clients
        first = 1 - middle + other
        reached = -first * math.log(first) - (clients - 1) * other * math.log(other)
        low, high = (middle, high) if reached < floor * math.log(clients) else (low, middle)
    return high
