from __future__ import annotations

import numpy as np

from quality.arms.arm import Score
from quality.directions import fit_directions
from quality.scored import Anchors, Groups, Rewards

_PASSES = 10
_OPTIMISM = 0.5


class LinUcb:
    """One client is chosen for each input by LinUCB (Li et al. 2010), as LASeR does (arXiv 2410.01735).

    The bandit goes over the anchors and is paid 1 when the client that it chose ranks the pair right; afterwards it
    chooses by its mean estimate. LASeR is paid by the policy's training loss instead, which is not at hand offline: the
    anchors' labels are the better teacher.
    """

    title = "LinUCB choice (LASeR)"

    def fit(self, anchors: Anchors) -> Score:
        directions = fit_directions(anchors.pairs.inputs)
        contexts, right = directions(anchors.pairs.inputs), anchors.right
        clients, size = right.shape[1], contexts.shape[1]
        inverse = np.stack([np.eye(size)] * clients)
        paid = np.zeros((clients, size))
        random = np.random.default_rng(0)
        for _ in range(_PASSES):
            for n in random.permutation(len(contexts)):
                x = contexts[n]
                reach = inverse @ x
                value = (reach * paid).sum(axis=1) + _OPTIMISM * np.sqrt(reach @ x)
                k = int(value.argmax())
                inverse[k] -= np.outer(reach[k], reach[k]) / (1 + reach[k] @ x)
                paid[k] += right[n, k] * x
        estimate = np.einsum("kij,kj->ki", inverse, paid)

        def score(groups: Groups) -> Rewards:
            chosen = (directions(groups.inputs) @ estimate.T).argmax(axis=1)
            return np.asarray(groups.scores[np.arange(len(groups)), chosen])

        return score
