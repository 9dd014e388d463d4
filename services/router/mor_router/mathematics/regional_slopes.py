"""Regional slopes: the log-odds that one standardised unit of a client adds, by input.

Deviations: MoR (arXiv 2602.00485) weighs clients by a learned router; feature-weighted stacking (arXiv 0911.0460) has
signed coefficients. Here a non-negative slope varies over soft regions, and the gate's weights are shares of it.

    β_k(x) = ψ(x)·θ_k ≥ 0                 ψ(x) = ( √v₀, √(v₁/S) φ(x) ) ≥ 0,  θ_k ≥ 0
    a_k(x) = β_k(x) / w_k(x)              so that  Σ_k w_k a_k s̃_k = Σ_k β_k s̃_k

φ are the responsibilities of the regions at S scales. The first feature gives a client's slope everywhere, the others
the addition in a region. A client that knows nothing of a region, or misleads there, has a β near 0 there and keeps
that of its own domain. Log-odds of independent judges add up (the optimal rule of Nitzan & Paroush 1982), so β is not
normalised: the gate's weights w are its shares, and the slope a restores the sum.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mor_router.mathematics.regions import Regions

_EVERYWHERE = 0.05
_REGIONAL = 0.5
"""v₀ and v₁: prior variances of the part everywhere and of the regional parts together, squared logits per unit."""


def features(regions: Regions, inputs: Float[ndarray, "inputs embedding"]) -> Float[ndarray, "inputs features"]:
    """Compute ψ(x), scaled so that every entry of θ has the same prior."""
    regional = np.sqrt(_REGIONAL / len(regions.scales)) * regions.responsibilities(inputs)
    return np.hstack([np.full((len(inputs), 1), np.sqrt(_EVERYWHERE)), regional])


def slopes(
    evidence: Float[ndarray, "inputs clients"], weights: Float[ndarray, "inputs clients"]
) -> Float[ndarray, "inputs clients"]:
    """Compute a(x) in logits per standardised unit; 0 where a client has no weight."""
    return np.asarray(np.divide(evidence, weights, out=np.zeros_like(evidence), where=weights > 0))


def influences(
    weights: Float[ndarray, "inputs clients"], slopes: Float[ndarray, "inputs clients"]
) -> Float[ndarray, "inputs clients"]:
    """Compute each client's influence u_k = w_k a_k / Σ_j w_j a_j; 0 for all where every slope is 0."""
    evidence = weights * slopes
    total = evidence.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(evidence, total, out=np.zeros_like(evidence), where=total > 0))
