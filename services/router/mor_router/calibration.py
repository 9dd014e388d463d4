"""Slopes: how many logits one standardised unit of a client is worth, by region of input space.

    a_k(x) = Σ_m φ_m(x) · softplus(t_k + T_mk)  ≥ 0

t_k is the client's common slope, T its regional part. A client that knows nothing of a region, or misleads there, gets
a slope near 0 there and keeps the slope of its own domain.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

UNIT = float(np.log(np.expm1(1.0)))
"""softplus(UNIT) = 1: the slope before any evidence."""


def slopes(
    responsibilities: Float[ndarray, "inputs regions"],
    common: Float[ndarray, " clients"],
    regional: Float[ndarray, "regions clients"],
) -> Float[ndarray, "inputs clients"]:
    """a(x) in logits per standardised unit."""
    return np.asarray(responsibilities @ np.logaddexp(0.0, common + regional))
