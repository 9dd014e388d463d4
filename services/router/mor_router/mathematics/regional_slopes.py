"""Calibration: what one standardised unit of a client adds to the log-odds, by input.

    β_k(x) = ψ(x)·θ_k ≥ 0                 ψ(x) = ( √v₀, √(v₁/S) φ(x) ) ≥ 0,  θ_k ≥ 0
    a_k(x) = β_k(x) / w_k(x)              so that  Σ_k w_k a_k s̃_k = Σ_k β_k s̃_k

φ are the responsibilities of the regions at S scales. The first feature is what a client is worth everywhere, the
others what it is worth in a region besides. A client that knows nothing of a region, or misleads there, has a β near 0
there and keeps that of its own domain. Log-odds of independent judges add up (the optimal rule of Nitzan & Paroush
1982), so β is not made to sum to anything; the gate's weights w are its shares, and the slope a gives back the sum.
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
    """ψ(x), scaled so that every entry of θ has the same prior."""
    regional = np.sqrt(_REGIONAL / len(regions.scales)) * regions.responsibilities(inputs)
    return np.hstack([np.full((len(inputs), 1), np.sqrt(_EVERYWHERE)), regional])


def slopes(
    evidence: Float[ndarray, "inputs clients"], weights: Float[ndarray, "inputs clients"]
) -> Float[ndarray, "inputs clients"]:
    """a(x) in logits per standardised unit; 0 where a client has no evidence."""
    return np.asarray(np.divide(evidence, weights, out=np.zeros_like(evidence), where=weights > 0))
