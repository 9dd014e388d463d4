from __future__ import annotations

import numpy as np

from quality.arms.arm import Score
from quality.arms.uniform import standardise, standardisers
from quality.group_scores import AnchorPairs, GroupScores, Rewards

_NEIGHBOURS = 12
"""Anchors around an input by which clients are chosen."""
_EXPERTS = 3
"""Clients that score an input."""


class NearestCompetence:
    """Mean standardised score of the three clients that rank an input's twelve nearest anchors best.

    Competence on auxiliary questions chooses the top M experts, as FedGRPO does (arXiv 2602.12014).
    """

    title = "nearest competence (FedGRPO)"

    def fit(self, anchors: AnchorPairs) -> Score:
        units, right = standardisers(anchors), anchors.right
        overall = right.mean(axis=0)

        def score(groups: GroupScores) -> Rewards:
            similar = groups.inputs @ anchors.pairs.inputs.T
            nearest = np.argsort(-similar, axis=1, kind="stable")[:, :_NEIGHBOURS]
            competence = right[nearest].mean(axis=1) + 1e-3 * overall  # overall accuracy breaks ties
            experts = np.argsort(-competence, axis=1, kind="stable")[:, :_EXPERTS]
            chosen = np.take_along_axis(standardise(groups, units), experts[:, :, None], axis=1)
            return np.asarray(chosen.mean(axis=1))

        return score
