from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from quality.scored import Anchors, Groups, Rewards

Score = Callable[[Groups], Rewards]


class Arm(Protocol):
    """One way to turn the clients' scores into a reward. Only the order of rewards within a group counts."""

    title: str

    def fit(self, anchors: Anchors) -> Score:
        """Learn from the anchors; what comes back is a function of scores and inputs, never of labels."""
        ...
