"""A group that came back."""

from __future__ import annotations

from dataclasses import dataclass

from mor_core.wire import RewardRecord, TokenBlock


@dataclass(frozen=True)
class ScoredGroup:
    """A group with its tokens and rewards."""

    record: RewardRecord
    tokens: TokenBlock


@dataclass(frozen=True)
class Taken:
    """A group handed to the training loop."""

    number: int
    group: ScoredGroup
    staleness: int
