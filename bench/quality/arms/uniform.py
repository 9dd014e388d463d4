from __future__ import annotations

import numpy as np
from jaxtyping import Float
from mor_router.mathematics.standardise import Standardiser, fit_standardiser
from numpy import ndarray

from quality.arms.arm import Score
from quality.scored import Anchors, Groups


class UniformRaw:
    """R_i = mean_k s_ki: the plain mean of the clients' own calibrated logits."""

    title = "uniform, raw"

    def fit(self, anchors: Anchors) -> Score:
        return lambda groups: groups.scores.mean(axis=1)


class UniformStandardised:
    """R_i = mean_k s̃_ki: the mean after each client's scores are brought to the same unit on the anchors."""

    title = "uniform, standardised"

    def fit(self, anchors: Anchors) -> Score:
        units = standardisers(anchors)
        return lambda groups: standardise(groups, units).mean(axis=1)


def standardisers(anchors: Anchors) -> tuple[Standardiser, ...]:
    """One for each client, as the router fits them."""
    return tuple(fit_standardiser(anchors.pairs.scores[:, k]) for k in range(anchors.pairs.scores.shape[1]))


def standardise(groups: Groups, units: tuple[Standardiser, ...]) -> Float[ndarray, "groups clients size"]:
    return np.stack([unit(groups.scores[:, k]) for k, unit in enumerate(units)], axis=1)
