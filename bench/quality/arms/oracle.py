from __future__ import annotations

import numpy as np

from quality.arms.arm import Score
from quality.group_scores import AnchorPairs, GroupScores, Rewards, agreement


class Oracle:
    """Score of the client that is best at the sub-skill on the held-out pairs themselves, by their gold labels.

    It is the upper bound of choosing one client per kind of question; a fusion of several can exceed it.
    """

    title = "oracle (best client per sub-skill)"

    def __init__(self, held_out: GroupScores) -> None:
        """``held_out``: pairs whose first response is the preferred one."""
        right, skills = agreement(held_out.scores), np.array(held_out.skills)
        self._best = {skill: int(right[skills == skill].mean(axis=0).argmax()) for skill in set(held_out.skills)}

    def fit(self, anchors: AnchorPairs) -> Score:
        def score(groups: GroupScores) -> Rewards:
            return groups.scores[np.arange(len(groups)), [self._best[skill] for skill in groups.skills]]

        return score
