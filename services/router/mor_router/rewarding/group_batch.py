"""Groups to reward, and what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mor_core.wire import GroupReward, RewardExplanation, RewardItem

from mor_router.clients.scoring import ClientResponses
from mor_router.trust.honeypots import HoneypotBatch


@dataclass(frozen=True)
class GroupBatch:
    """Groups to reward, and the images that they name."""

    items: Sequence[RewardItem]
    images: Mapping[str, bytes] = field(repr=False)
    traces: Mapping[str, str | None] = field(default_factory=dict)
    """Item -> ``traceparent`` of the span in which it is rewarded."""
    policies: Mapping[str, str] = field(default_factory=dict)
    """Item -> run and weights version that sampled it. An item without one is no run's, and is never audited."""


class Unrewarded(RewardExplanation):
    """A group without a reward."""

    problem: str
    """Reason why there is no reward."""
    outage: bool = False
    """True where calls to clients failed that would have made a quorum: waiting may help."""


@dataclass(frozen=True)
class GroupOutcome:
    """Result for one item of a batch."""

    item_id: str
    result: GroupReward | Unrewarded
    note: str | None
    """Reason why there is no fitted gate, or why these objectives were chosen."""


@dataclass(frozen=True)
class LastAttempt:
    """Results of an attempt that the next attempt at the same groups reuses."""

    answers: ClientResponses
    """The good answers, so that no client scores a group twice."""
    honeypots: Mapping[str, HoneypotBatch]
    """Objective, as JSON -> honeypots that are tried again with its groups."""
