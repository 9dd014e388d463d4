from __future__ import annotations

import numpy as np

from quality.arms.arm import Score
from quality.directions import fit_directions
from quality.group_scores import AnchorPairs, GroupScores, Rewards

_NOISE = 0.25
"""Variance of a correct ranking, the maximum of a Bernoulli variable."""


class Thompson:
    """Draw of one client per input by its probability of being the best there, as in BayesianRouter (2510.02850).

    Offline, the anchors give every client a Bayesian linear regression of "ranks this pair right"; online, one weight
    vector is sampled from each posterior and the client with the highest value scores the group (Thompson sampling).
    """

    title = "Thompson choice (BayesianRouter)"

    def fit(self, anchors: AnchorPairs) -> Score:
        directions = fit_directions(anchors.pairs.inputs)
        contexts = directions(anchors.pairs.inputs)
        covariance = np.linalg.inv(np.eye(contexts.shape[1]) + contexts.T @ contexts / _NOISE)
        means = covariance @ contexts.T @ (anchors.right - 0.5) / _NOISE
        root = np.linalg.cholesky(covariance)

        def score(groups: GroupScores) -> Rewards:
            random = np.random.default_rng(0)
            seen = directions(groups.inputs)
            drawn = random.standard_normal((len(seen), root.shape[1], means.shape[1]))
            value = seen @ means + np.einsum("nd,de,nek->nk", seen, root, drawn)
            return np.asarray(groups.scores[np.arange(len(groups)), value.argmax(axis=1)])

        return score
