"""The gate: trust in each client, given the input and the objective.

    w(x, o) = (1 − ε) · softmax_k( (q(e(x), e(o)) · c_k + prior_k) / τ ) + ε / K      over the K available clients

q(e(x), e(o)) = φ(x), the responsibilities of the regions of objective o for input x: an objective has regions of its
own, found on its anchors. c_k, the client's embedding, holds one logit per region. ε is the smallest share for which no
input can push the entropy of w below the floor, whatever the logits are.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray


def weights(
    responsibilities: Float[ndarray, "inputs regions"],
    embeddings: Float[ndarray, "regions clients"],
    prior: Float[ndarray, " clients"],
    available: Bool[ndarray, " clients"],
    *,
    temperature: float,
    entropy_floor: float,
) -> Float[ndarray, "inputs clients"]:
    """w(x, o): sums to 1 over the available clients, 0 for the others.

    Raises:
        ValueError: no client is available.
    """
    count = int(available.sum())
    if not count:
        raise ValueError("no client is available")
    logits = (responsibilities @ embeddings + prior) / temperature
    logits = np.where(available, logits, -np.inf)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    share = uniform_share(count, entropy_floor)
    return np.asarray((1 - share) * odds / odds.sum(axis=1, keepdims=True) + share * available / count)


def entropy(mixture: Float[ndarray, "*batch clients"]) -> Float[ndarray, "*batch"]:
    """Entropy of mixture weights, nats."""
    safe = np.where(mixture > 0, mixture, 1.0)
    return np.asarray(0.0 - (safe * np.log(safe)).sum(axis=-1))


@cache
def uniform_share(clients: int, floor: float) -> float:
    """ε: the uniform share that keeps the entropy of any mixture of ``clients`` at or above ``floor`` · log(clients).

    Entropy is concave, so over all mixtures the lowest is reached where one client has everything else: the share is
    found there, by bisection.

    Raises:
        ValueError: ``floor`` is not in [0, 1].
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"entropy floor {floor}: a share of the largest entropy in [0, 1] is wanted")
    if clients < 2 or floor == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        other = middle / clients
        first = 1 - middle + other
        reached = -first * math.log(first) - (clients - 1) * other * math.log(other)
        low, high = (middle, high) if reached < floor * math.log(clients) else (low, middle)
    return high
