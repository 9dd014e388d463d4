from __future__ import annotations

import numpy as np
from jaxtyping import Float
from mor_router.mathematics.standardise import Standardiser, fit_standardiser
from numpy import ndarray

from quality.arms.arm import Score
from quality.group_scores import AnchorPairs, GroupScores


class UniformRaw:
    """Plain mean of the clients' own calibrated logits: R_i = mean_k s_ki."""

    title = "uniform, raw"

    def fit(self, anchors: AnchorPairs) -> Score:
        return lambda groups: groups.scores.mean(axis=1)


class UniformStandardised:
    """Mean of the clients' scores, each standardised on the anchors: R_i = mean_k s̃_ki."""

    title = "uniform, standardised"

    def fit(self, anchors: AnchorPairs) -> Score:
        units = standardisers(anchors)
        return lambda groups: standardise(groups, units).mean(axis=1)


def standardisers(anchors: AnchorPairs) -> tuple[Standardiser, ...]:
    """Fit a standardiser for each client, as the router does."""
    return tuple(fit_standardiser(anchors.pairs.scores[:, k]) for k in range(anchors.pairs.scores.shape[1]))


def standardise(groups: GroupScores, units: tuple[Standardiser, ...]) -> Float[ndarray, "groups clients size"]:
    return np.stack([unit(groups.scores[:, k]) for k, unit in enumerate(units)], axis=1)
