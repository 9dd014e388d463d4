from __future__ import annotations

import numpy as np
from mor_router.fuse import Fused, fuse
from mor_router.fusion import Fusion, MeanMinusVariance, WorstClient

from quality.arms.arm import Score
from quality.arms.uniform import standardisers
from quality.scored import Anchors, Groups, Rewards


class Pessimistic:
    """An ensemble that believes its doubters: the router's own fusions of standardised scores, every weight the same.

    Worst client and mean − λ·variance are the two conservative objectives of Coste et al. 2024 (arXiv 2310.02743).
    """

    def __init__(self, title: str, fusion: Fusion) -> None:
        self.title = title
        self._fusion = fusion

    def fit(self, anchors: Anchors) -> Score:
        units = {str(k): unit for k, unit in enumerate(standardisers(anchors))}
        share, slope = dict.fromkeys(units, 1 / len(units)), dict.fromkeys(units, 1.0)

        def score(groups: Groups) -> Rewards:
            rewards = []
            for scores in groups.scores:
                fused = fuse(
                    dict(zip(units, scores.tolist(), strict=True)),
                    gate_weights=share,
                    slopes=slope,
                    standardisers=units,
                    fusion=self._fusion,
                    quorum=0.0,
                )
                assert isinstance(fused, Fused)
                rewards.append(fused.rewards)
            return np.stack(rewards)

        return score


def worst_client() -> Pessimistic:
    return Pessimistic("worst client", WorstClient())


def mean_minus_variance() -> Pessimistic:
    return Pessimistic("mean - λ·variance", MeanMinusVariance())
