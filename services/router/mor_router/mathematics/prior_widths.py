"""Width of each coefficient's prior, from the slope of the client on its own.

Deviations from the adaptive lasso (Zou 2006) and UniLasso (Chatterjee, Hastie & Tibshirani 2025, arXiv 2501.18360):
the penalty is quadratic, a width is a square root with a floor, and widths vary by region. A few anchors show how good
each client is much better than how to divide what several clients know.

With ψ_j / max ψ_j as the part h_nj that pair n has in feature j, and d_nk as in ``coefficients``:

    u_k  = argmin_{u ≥ 0} Σ_n −log σ(u d_nk) + u²/2     everywhere
    u_jk = max( u_k + ∇_jk / (H_jk + 16), 0 )     in j: one Newton step from u_k, damped by 16
    g_jk = √max( u_jk / rms(u), 0.1 )

∇_jk = Σ_n h_nj d_nk (1 − σ(u_k d_nk)), and H_jk is the curvature, likewise. An expert that misleads elsewhere has a
small u everywhere and a large one in its region, so its prior is wide there.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_POOLING = 16.0
"""Weight of the slope everywhere against that of a region, in units of curvature."""
_LEAST = 0.1
"""Least u, relative to its root mean square: no prior is so narrow that anchors cannot move its coefficient."""
_MOST_STEPS = 100
"""Bound on Newton's steps, which mostly end earlier."""
_LONGEST_STEP = 0.5
"""Longest Newton step, logits per unit: longer ones may overshoot where the loss is nearly flat."""


def widths(
    features: Float[ndarray, "pairs features"],
    differences: Float[ndarray, "pairs clients"],
    known: Float[ndarray, " pairs"],
) -> Float[ndarray, "features clients"]:
    """Compute g; ``known`` are log-odds that are added to every client's."""
    part = features / features.max(axis=0)
    worth = _everywhere(differences, known)
    wrong = _wrong(differences, known, worth)
    rise = part.T @ (wrong * differences)
    curvature = part.T @ (wrong * (1 - wrong) * np.square(differences))
    there = np.maximum(worth + rise / (curvature + _POOLING), 0)
    typical = float(np.sqrt(np.square(there).mean())) or 1.0
    return np.asarray(np.sqrt(np.maximum(there / typical, _LEAST)))


def _everywhere(
    differences: Float[ndarray, "pairs clients"], known: Float[ndarray, " pairs"]
) -> Float[ndarray, " clients"]:
    """Compute u_k by Newton's method for all clients at once, with bounded steps."""
    worth = np.zeros(differences.shape[1])
    for _ in range(_MOST_STEPS):
        wrong = _wrong(differences, known, worth)
        rise = (wrong * differences).sum(axis=0) - worth
        curvature = (wrong * (1 - wrong) * np.square(differences)).sum(axis=0) + 1
        step = np.clip(rise / curvature, -_LONGEST_STEP, _LONGEST_STEP)
        worth = worth + step
        if np.abs(step).max(initial=0) < 1e-10:
            break
    return np.maximum(worth, 0)


def _wrong(
    differences: Float[ndarray, "pairs clients"], known: Float[ndarray, " pairs"], worth: Float[ndarray, " clients"]
) -> Float[ndarray, "pairs clients"]:
    """Compute 1 − σ(margin)."""
    return np.asarray(1 / (1 + np.exp(np.clip(known[:, None] + worth * differences, -50, 50))))
