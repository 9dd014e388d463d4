from __future__ import annotations

import numpy as np

from quality.arms.arm import Score
from quality.directions import fit_directions
from quality.scored import Anchors, Groups, Rewards

_NOISE = 0.25
"""Variance of a pair being ranked right or wrong, the largest a coin can have."""


class Thompson:
    """One client is drawn for each input by how likely it is the best there, as BayesianRouter does (2510.02850).

    Offline, the anchors give every client a Bayesian linear regression of "ranks this pair right"; online, one weight
    vector is sampled from each posterior and the client with the highest value scores the group (Thompson sampling).
    """

    title = "Thompson choice (BayesianRouter)"

    def fit(self, anchors: Anchors) -> Score:
        directions = fit_directions(anchors.pairs.inputs)
        contexts = directions(anchors.pairs.inputs)
        covariance = np.linalg.inv(np.eye(contexts.shape[1]) + contexts.T @ contexts / _NOISE)
        means = covariance @ contexts.T @ (anchors.right - 0.5) / _NOISE
        root = np.linalg.cholesky(covariance)

        def score(groups: Groups) -> Rewards:
            random = np.random.default_rng(0)
            seen = directions(groups.inputs)
            drawn = random.standard_normal((len(seen), root.shape[1], means.shape[1]))
            value = seen @ means + np.einsum("nd,de,nek->nk", seen, root, drawn)
            return np.asarray(groups.scores[np.arange(len(groups)), value.argmax(axis=1)])

        return score
