"""Agreement of a client's part in the reward of a group with the parts of all others together.

With c_k = w_k · (calibrated deviations of client k from their mean), T the clients without suspicion and r_k the sum of
c_j over the other clients in T:

    agreement      cos( c_k, r_k )
    stake v_k      min( 1, K u_k )² · min( 1, 4 Σ_j u_j )      j: the clients of r_k;   u: shares of the influence

Every part counts by its size, so clients that know nothing of an input hardly move the agreement of one that knows it.
Suspected clients are left out of r_k, so that nobody comes under suspicion for differing from a suspect.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

_WHOLE = 0.25
"""Influence of the others from which on their agreement counts in full."""


def cosines(
    contributions: Float[ndarray, "clients group"], suspected: Bool[ndarray, " clients"]
) -> Float[ndarray, " clients"]:
    """Compute each client's agreement with the others; ``contributions``: weighted calibrated scores.

    The result is NaN where the client, or the others together, distinguish no responses.
    """
    own = contributions - contributions.mean(axis=1, keepdims=True)
    trusted = np.where(suspected[:, None], 0.0, own)
    rest = trusted.sum(axis=0) - trusted
    norms = np.linalg.norm(own, axis=1) * np.linalg.norm(rest, axis=1)
    products = (own * rest).sum(axis=1)
    return np.asarray(np.divide(products, norms, out=np.full_like(norms, np.nan), where=norms > 0))


def stakes(influence: Float[ndarray, " clients"], suspected: Bool[ndarray, " clients"]) -> Float[ndarray, " clients"]:
    """Compute v of each client from the shares of influence."""
    trusted = np.where(suspected, 0.0, influence)
    rest = trusted.sum() - trusted
    count = int((influence > 0).sum())
    return np.asarray(np.minimum(1, count * influence) ** 2 * np.minimum(1, rest / _WHOLE))
