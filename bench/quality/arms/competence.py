from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from quality.arms.arm import Score
from quality.arms.uniform import standardise, standardisers
from quality.group_scores import AnchorPairs, GroupScores, Rewards

_NEIGHBOURS = 12
"""Anchors around an input by which clients are chosen."""
EXPERTS = 3
"""Clients that score an input."""


class Competence:
    """Clients' correctness on labelled anchors, by which experts are chosen for an input."""

    def __init__(self, anchors: AnchorPairs) -> None:
        self._inputs = anchors.pairs.inputs
        self._units, self._right = standardisers(anchors), anchors.right
        self._overall = self._right.mean(axis=0)

    def experts(self, inputs: Float[ndarray, "groups features"]) -> Int[ndarray, "groups experts"]:
        """Choose the clients that rank the nearest anchors best."""
        similar = inputs @ self._inputs.T
        nearest = np.argsort(-similar, axis=1, kind="stable")[:, :_NEIGHBOURS]
        competence = self._right[nearest].mean(axis=1) + 1e-3 * self._overall  # overall accuracy breaks ties
        return np.argsort(-competence, axis=1, kind="stable")[:, :EXPERTS]

    def rewards(self, groups: GroupScores, experts: Int[ndarray, "groups experts"]) -> Rewards:
        """Average the experts' standardised scores."""
        chosen = np.take_along_axis(standardise(groups, self._units), experts[:, :, None], axis=1)
        return np.asarray(chosen.mean(axis=1))


class NearestCompetence:
    """Mean standardised score of the three clients that rank an input's twelve nearest anchors best.

    Competence on auxiliary questions chooses the top M experts, as FedGRPO does (arXiv 2602.12014).
    """

    title = "nearest competence (FedGRPO)"

    def fit(self, anchors: AnchorPairs) -> Score:
        competence = Competence(anchors)
        return lambda groups: competence.rewards(groups, competence.experts(groups.inputs))
