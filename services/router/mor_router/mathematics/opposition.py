"""Opposition: whether a client ranks a group against all others together.

With c_k = w_k · (calibrated deviations of client k from their mean), T the clients without suspicion and r_k the sum of
c_j over the other clients in T, client k opposes the others where

    cos( c_k, r_k ) < −½          stake v_k = min( 1, K u_k )² · min( 1, 4 Σ_j u_j )    j: the clients of r_k

A client that inverts its scores opposes the others in most groups, an honest one seldom, whatever the responses are.
Every part counts by its size, so clients that know nothing of an input neither hide the opposition nor cause it.
Suspected clients are left out of r_k, so that nobody comes under suspicion for opposing a suspect.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

_AGAINST = -0.5
"""Cosine below which a client opposes the others. It is the same for a client with much and with little weight: were
it a share of what the client says, a heavy attacker would seem to agree, and those that it misleads to oppose."""
_WHOLE = 0.25
"""Influence of the others from which on their opposition counts in full."""


def opposes(
    contributions: Float[ndarray, "clients group"], suspected: Bool[ndarray, " clients"]
) -> Bool[ndarray, " clients"]:
    """Find the clients that oppose the others; ``contributions``: weighted calibrated scores."""
    own = contributions - contributions.mean(axis=1, keepdims=True)
    trusted = np.where(suspected[:, None], 0.0, own)
    rest = trusted.sum(axis=0) - trusted
    norms = np.linalg.norm(own, axis=1) * np.linalg.norm(rest, axis=1)
    return np.asarray((own * rest).sum(axis=1) < _AGAINST * norms)


def stakes(influence: Float[ndarray, " clients"], suspected: Bool[ndarray, " clients"]) -> Float[ndarray, " clients"]:
    """Compute v of each client from the shares of influence."""
    trusted = np.where(suspected, 0.0, influence)
    rest = trusted.sum() - trusted
    count = int((influence > 0).sum())
    return np.asarray(np.minimum(1, count * influence) ** 2 * np.minimum(1, rest / _WHOLE))
