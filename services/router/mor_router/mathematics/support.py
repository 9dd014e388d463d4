"""How far the anchors reach: beyond them nothing is known of any client, and every client counts the same.

    ν(x) = 1 − min( 1, ρ / min_n ‖e(x) − e(x_n)‖² )^4

ρ is the squared distance within which an anchor nearly always (95 %) has another anchor, or a quarter of their variance
where that is more: many pairs about a few questions do not make all other questions strange. Full embeddings are
compared, as what no anchor is about lies outside the anchors' own leading directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mor_router.mathematics.regions import squared_distances

_LANDMARKS = 128
_WITHIN = 0.95
_VARIANCE = 0.25
_POWER = 4


@dataclass(frozen=True)
class Reach:
    landmarks: Float[ndarray, "landmarks features"]
    """Embeddings of anchors, at most 128 of them; none where the anchors cannot tell how far they reach."""
    squared: float
    """The squared distance of the nearest anchor within which nothing is beyond them."""

    def beyond(self, inputs: Float[ndarray, "inputs features"]) -> Float[ndarray, " inputs"]:
        """ν(x): 0 within the anchors' reach, towards 1 far from all of them."""
        if not len(self.landmarks):
            return np.zeros(len(inputs))
        nearest = squared_distances(inputs, self.landmarks).min(axis=1)
        return np.asarray(1 - np.minimum(1, self.squared / np.maximum(nearest, self.squared)) ** _POWER)


def fit_reach(inputs: Float[ndarray, "pairs features"]) -> Reach:
    """The same inputs always give the same reach.

    Of more than 128 distinct ones a random 128 are landmarks; where more are left, those tell how near an input is."""
    distinct = np.unique(inputs.round(6), axis=0)
    if len(distinct) < 2:
        return Reach(inputs[:0], 0.0)
    order = np.random.default_rng(0).permutation(len(distinct))
    landmarks, rest = distinct[order[:_LANDMARKS]], distinct[order[_LANDMARKS:]]
    if len(rest) >= len(landmarks):
        nearest = squared_distances(rest, landmarks).min(axis=1)
    else:
        between = squared_distances(landmarks, landmarks)
        np.fill_diagonal(between, np.inf)
        nearest = between.min(axis=1)
    variance = float(np.square(distinct - distinct.mean(axis=0)).sum(axis=1).mean())
    return Reach(landmarks, max(float(np.quantile(nearest, _WITHIN)), _VARIANCE * variance))
