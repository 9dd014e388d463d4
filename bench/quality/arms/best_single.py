from __future__ import annotations

from quality.arms.arm import Score
from quality.group_scores import AnchorPairs


class BestSingle:
    """Reward of the one client that ranks most anchors right."""

    title = "best single client"

    def fit(self, anchors: AnchorPairs) -> Score:
        best = int(anchors.right.mean(axis=0).argmax())
        return lambda groups: groups.scores[:, best]
