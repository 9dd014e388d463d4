"""Support of the anchors: far from all of them no client's quality is known, and every client counts the same.

Deviation from nearest-neighbour out-of-distribution detection: the score is a smooth share in [0, 1), not a threshold.

    ν(x) = 1 − min( 1, ρ / min_n ‖e(x) − e(x_n)‖² )^4

ρ is the squared distance within which 95 % of the anchors have another anchor, or a quarter of their variance where
that is more. The second rule keeps many pairs about a few questions from making all other questions out of
distribution. Full embeddings are compared, because new topics lie outside the anchors' leading directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mor_router.mathematics.regions import squared_distances

_LANDMARKS = 128
"""Most anchors that inputs are compared with, to bound the time of a group and the size of a gate version."""
_WITHIN = 0.95
"""Share of the anchors that have another anchor within the radius of the support."""
_VARIANCE = 0.25
"""Least squared radius, as a share of the anchors' variance."""
_POWER = 4
"""Exponent of the score: its steepness outside the support."""


@dataclass(frozen=True)
class Support:
    """Region of input space that the anchors cover."""

    landmarks: Float[ndarray, "landmarks features"]
    """Embeddings of at most 128 anchors; none where the anchors are too few to measure a support."""
    squared: float
    """Squared distance to the nearest anchor up to which the score is 0."""

    def ood_score(self, inputs: Float[ndarray, "inputs features"]) -> Float[ndarray, " inputs"]:
        """Compute ν(x): 0 within the anchors' support, towards 1 far from all of them."""
        if not len(self.landmarks):
            return np.zeros(len(inputs))
        return 1 - nearness(squared_distances(inputs, self.landmarks).min(axis=1), self.squared)


def nearness(squared: Float[ndarray, "*inputs"], radius: float) -> Float[ndarray, "*inputs"]:
    """Compute min( 1, ρ / d² )^4 of squared distances d², for the squared radius ρ; 1 where there is no radius."""
    if not radius:
        return np.ones_like(squared)
    return np.asarray((radius / np.maximum(squared, radius)) ** _POWER)


def fit_support(inputs: Float[ndarray, "pairs features"]) -> Support:
    """Fit the support of the anchors. The same inputs always give the same support.

    Of more than 128 distinct inputs a random 128 become landmarks. The distances of the rest give ρ where there are at
    least as many; otherwise the distances between landmarks do.
    """
    distinct = np.unique(inputs.round(6), axis=0)
    if len(distinct) < 2:
        return Support(inputs[:0], 0.0)
    order = np.random.default_rng(0).permutation(len(distinct))
    landmarks, rest = distinct[order[:_LANDMARKS]], distinct[order[_LANDMARKS:]]
    if len(rest) >= len(landmarks):
        nearest = squared_distances(rest, landmarks).min(axis=1)
    else:
        between = squared_distances(landmarks, landmarks)
        np.fill_diagonal(between, np.inf)
        nearest = between.min(axis=1)
    variance = float(np.square(distinct - distinct.mean(axis=0)).sum(axis=1).mean())
    return Support(landmarks, max(float(np.quantile(nearest, _WITHIN)), _VARIANCE * variance))
