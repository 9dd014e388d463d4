"""A group that came back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mor_core.wire import RewardRecord, TokenBlock


@dataclass(frozen=True)
class ScoredGroup:
    """A group with its tokens and rewards."""

    record: RewardRecord
    tokens: TokenBlock
    received_at: float = field(default_factory=time.time)
    """Unix time at which it was read, seconds."""


@dataclass(frozen=True)
class Taken:
    """A group handed to the training loop."""

    number: int
    group: ScoredGroup
    staleness: int
