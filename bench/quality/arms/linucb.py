from __future__ import annotations

import numpy as np

from quality.arms.arm import Score
from quality.directions import fit_directions
from quality.group_scores import AnchorPairs, GroupScores, Rewards

_PASSES = 10
"""Passes over the anchors, in random order."""
_OPTIMISM = 0.5
"""Weight of the confidence bound in the choice."""


class LinUcb:
    """Choice of one client per input by LinUCB (Li et al. 2010), as in LASeR (arXiv 2410.01735).

    Deviation: LASeR's bandit reward is the policy's training loss, which does not exist offline; here the bandit gets 1
    if the chosen client ranks an anchor right, which is a better signal. Afterwards it chooses by its mean estimate.
    """

    title = "LinUCB choice (LASeR)"

    def fit(self, anchors: AnchorPairs) -> Score:
        directions = fit_directions(anchors.pairs.inputs)
        contexts, right = directions(anchors.pairs.inputs), anchors.right
        clients, size = right.shape[1], contexts.shape[1]
        inverse = np.stack([np.eye(size)] * clients)
        paid = np.zeros((clients, size))
        random = np.random.default_rng(0)
        for _ in range(_PASSES):
            for n in random.permutation(len(contexts)):
                x = contexts[n]
                projected = inverse @ x
                value = (projected * paid).sum(axis=1) + _OPTIMISM * np.sqrt(projected @ x)
                k = int(value.argmax())
                inverse[k] -= np.outer(projected[k], projected[k]) / (1 + projected[k] @ x)
                paid[k] += right[n, k] * x
        estimate = np.einsum("kij,kj->ki", inverse, paid)

        def score(groups: GroupScores) -> Rewards:
            chosen = (directions(groups.inputs) @ estimate.T).argmax(axis=1)
            return np.asarray(groups.scores[np.arange(len(groups)), chosen])

        return score
