from __future__ import annotations

import numpy as np

from quality.arms.arm import Score
from quality.scored import Anchors, Groups, Rewards, agreement


class Oracle:
    """Every sub-skill goes to the client that is best at it on the held-out pairs themselves, by their gold labels.

    The upper bound of choosing one client by kind of question; fusing several can exceed it.
    """

    title = "oracle (best client per sub-skill)"

    def __init__(self, held_out: Groups) -> None:
        """``held_out``: pairs whose first response is the preferred one."""
        right, skills = agreement(held_out.scores), np.array(held_out.skills)
        self._best = {skill: int(right[skills == skill].mean(axis=0).argmax()) for skill in set(held_out.skills)}

    def fit(self, anchors: Anchors) -> Score:
        def score(groups: Groups) -> Rewards:
            return groups.scores[np.arange(len(groups)), [self._best[skill] for skill in groups.skills]]

        return score
