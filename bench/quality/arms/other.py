from __future__ import annotations

from quality.arms.arm import Score
from quality.group_scores import AnchorPairs


class OtherModel:
    """Reward model that no client serves: averaged parameters, pooled data, or the anchors alone."""

    def __init__(self, name: str, title: str) -> None:
        self.title = title
        self._name = name

    def fit(self, anchors: AnchorPairs) -> Score:
        return lambda groups: groups.others[self._name]
