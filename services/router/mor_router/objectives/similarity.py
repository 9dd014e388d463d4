"""How much of each fitted objective is in a text that is no objective's own.

    w(x, o) = Σ_j κ_j(e(o)) w(x, o_j),      κ = softmax_j( max_t e(o)·e(t_j) / τ )

t_j runs over the text and the paraphrases of objective j; e is of length 1, so the product is the cosine. Shares under
1 % are dropped: they cost a gate each and move no ranking.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_TEMPERATURE = 0.05
"""τ: a cosine that is higher by 0.12 has ten times the share."""
_LEAST_SHARE = 0.01


def shares(likeness: Float[ndarray, " objectives"]) -> Float[ndarray, " objectives"]:
    """κ from the best cosine of each objective; sums to 1.

    Raises:
        ValueError: no objectives.
    """
    if not len(likeness):
        raise ValueError("a text cannot be shared among no objectives")
    odds = np.exp((likeness - likeness.max()) / _TEMPERATURE)
    kept = np.where(odds >= _LEAST_SHARE * odds.sum(), odds, 0.0)
    return np.asarray(kept / kept.sum())
