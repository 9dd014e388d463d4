"""Shares of the fitted objectives in a text that is not an objective's own.

    w(x, o) = Σ_j κ_j(e(o)) w(x, o_j),      κ = softmax_j( max_t e(o)·e(t_j) / τ )

t_j runs over the text and the paraphrases of objective j; e is of length 1, so the product is the cosine. Shares under
1 % are dropped: each costs the evaluation of a gate and changes no ranking.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_TEMPERATURE = 0.05
"""τ: a cosine that is higher by 0.12 has ten times the share."""
_LEAST_SHARE = 0.01
"""Shares below it are dropped; the others are scaled to sum to 1."""


def objective_shares(similarity: Float[ndarray, " objectives"]) -> Float[ndarray, " objectives"]:
    """Return κ from the best cosine of each objective; it sums to 1.

    Raises:
        ValueError: no objectives.
    """
    if not len(similarity):
        raise ValueError("got no objectives; at least one is needed to share a text among")
    odds = np.exp((similarity - similarity.max()) / _TEMPERATURE)
    kept = np.where(odds >= _LEAST_SHARE * odds.sum(), odds, 0.0)
    return np.asarray(kept / kept.sum())
