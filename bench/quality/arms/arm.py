from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from quality.group_scores import AnchorPairs, GroupScores, Rewards

Score = Callable[[GroupScores], Rewards]


class Arm(Protocol):
    """Way to compute a reward from the clients' scores. Only the order of rewards within a group matters."""

    title: str

    def fit(self, anchors: AnchorPairs) -> Score:
        """Learn from the anchors; return a function of scores and inputs, never of labels."""
        ...
