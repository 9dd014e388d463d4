"""A group that came back with tokens and rewards."""

from __future__ import annotations

from mor_core.server_clock import SERVER_CLOCK
from mor_core.wire import RewardRecord, TokenBlock
from pydantic import BaseModel, ConfigDict, Field


class ScoredGroup(BaseModel):
    """A group with its tokens and rewards, from its arrival to the step that trains on it, and in the replay log."""

    model_config = ConfigDict(frozen=True)

    number: int
    """Its place in the order in which prompts are drawn; see ``groups/ledger.py``."""
    staleness: int = 0
    """Updates between the version that sampled it and the step that takes it; set when it is taken."""
    record: RewardRecord
    tokens: TokenBlock
    received_at: float = Field(default_factory=SERVER_CLOCK.now, exclude=True)
    """Unix time of the queue server at which this process read it, seconds."""
