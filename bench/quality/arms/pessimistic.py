from __future__ import annotations

import numpy as np
from mor_router.mathematics.fusion import FusionStrategy, GroupDeviations, MeanMinusVariance, WorstClient

from quality.arms.arm import Score
from quality.arms.uniform import standardise, standardisers
from quality.group_scores import AnchorPairs, GroupScores, Rewards


class Pessimistic:
    """Pessimistic ensemble: the router's own fusions of standardised scores, with equal weights.

    Worst client and mean − λ·variance are the two conservative objectives of Coste et al. 2024 (arXiv 2310.02743).
    """

    def __init__(self, title: str, fusion: FusionStrategy) -> None:
        self.title = title
        self._fusion = fusion

    def fit(self, anchors: AnchorPairs) -> Score:
        units = standardisers(anchors)
        weights = np.full(len(units), 1 / len(units))

        def score(groups: GroupScores) -> Rewards:
            served = standardise(groups, units)
            deviations = served - np.median(served, axis=2, keepdims=True)
            return np.stack([self._fusion(GroupDeviations(panel, weights)) for panel in deviations])

        return score


def worst_client() -> Pessimistic:
    return Pessimistic("worst client", WorstClient())


def mean_minus_variance() -> Pessimistic:
    return Pessimistic("mean - λ·variance", MeanMinusVariance())
