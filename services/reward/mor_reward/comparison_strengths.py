"""Strengths under the Bradley–Terry model that outcomes of comparisons speak for."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

_NEWTON_STEPS = 50
"""Bound; a group of 64 takes about six."""
_CONVERGED = 1e-9
"""Step at which the fit ends, logits."""


def strengths(wins: Float[np.ndarray, "items items"], prior_width: float = 2.0) -> list[float]:
    """Fit the strength of each item, in logits with mean 0, to the outcomes of comparisons.

    ``wins[i, j]``: comparisons that i won against j, halves for ties. The estimate is the posterior mode under a normal
    prior of standard deviation ``prior_width`` logits, so that an item that won every comparison has a finite strength
    (Caron and Doucet 2012). It is concave, and Newton's method finds it.
    """
    items = len(wins)
    found = np.zeros(items)
    compared = wins + wins.T
    for _ in range(_NEWTON_STEPS):
        share = 1 / (1 + np.exp(found[None, :] - found[:, None]))  # probability that i wins against j
        gradient = (wins - compared * share).sum(1) - found / prior_width**2
        weight = compared * share * (1 - share)
        curvature = np.diag(weight.sum(1) + 1 / prior_width**2) - weight
        step = np.linalg.solve(curvature, gradient)
        found = found + step
        if np.abs(step).max() < _CONVERGED:
            break
    return [float(strength) for strength in found - found.mean()]
