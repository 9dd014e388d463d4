from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from quality.group_scores import AnchorPairs, GroupScores, Rewards

Score = Callable[[GroupScores], Rewards]


def slug(title: str) -> str:
    """Return the title of an arm as a part of file names."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


class Arm(Protocol):
    """Way to compute a reward from the clients' scores. Only the order of rewards within a group matters."""

    title: str

    def fit(self, anchors: AnchorPairs) -> Score:
        """Learn from the anchors; return a function of scores and inputs, never of labels."""
        ...
