"""Groups to reward, and what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mor_core.visibility import Scope
from mor_core.wire import GroupReward, PromptOrigin, RewardExplanation, RewardItem
from pydantic import Field

from mor_router.clients.scoring import ClientResponses
from mor_router.trust.honeypot_batch import HoneypotBatch


@dataclass(frozen=True)
class GroupBatch:
    """Groups to reward, and the images that they name."""

    items: Sequence[RewardItem]
    images: Mapping[str, bytes] = field(repr=False)
    traces: Mapping[str, str | None] = field(default_factory=dict)
    """Item -> ``traceparent`` of the span in which it is rewarded."""
    policies: Mapping[str, str] = field(default_factory=dict)
    """Item -> run and weights version that sampled it. An item without one is no run's, and is never audited."""
    all_clients: bool = False
    """The groups wait until every client with weight has answered, those that are unreliable included."""

    @property
    def origins(self) -> dict[str, PromptOrigin]:
        """Map each item to the origin of its prompt."""
        return {item.item_id: item.origin for item in self.items}


class Unrewarded(RewardExplanation):
    """A group without a reward."""

    problem: str
    """Reason why there is no reward."""
    missing: dict[str, str] = Field(default_factory=dict)
    """Clients, or parts of the router, that are away and without which there is no reward -> the reason."""
    failed: dict[str, str] = Field(default_factory=dict)
    """Clients that answered with an error for this group, and without which there is no reward -> the reason."""

    @property
    def awaited(self) -> dict[str, str]:
        """Clients, or parts of the router, that may do better later -> the reason. Empty where the group itself is at
        fault: waiting does not help."""
        return self.failed | self.missing


@dataclass(frozen=True)
class GroupOutcome:
    """Result for one item of a batch."""

    item_id: str
    result: GroupReward | Unrewarded
    note: str | None
    """Reason why there is no fitted gate, or why these objectives were chosen."""

    def problem_for(self, scope: Scope) -> str | None:
        """Return why the group has no reward. A caller of scope ``scorer`` learns nothing of single clients."""
        if not isinstance(self.result, Unrewarded):
            return None
        if scope is not Scope.scorer or not self.result.clients:
            return self.result.problem
        if self.result.awaited:
            return "too many clients, or parts of the router, are away; try again later"
        return "the clients cannot score this group; the platform team sees the reasons"


@dataclass(frozen=True)
class LastAttempt:
    """Results of an attempt that the next attempt at the same groups reuses."""

    answers: ClientResponses
    """The good answers, so that no client scores a group twice."""
    honeypots: Mapping[str, HoneypotBatch]
    """Kind of groups, see ``RewardPipeline.reward`` -> honeypots that are tried again with them."""

    @staticmethod
    def joined(attempts: Sequence[LastAttempt]) -> LastAttempt:
        """Return the results of several attempts, for groups that are tried again together."""
        honeypots: dict[str, HoneypotBatch] = {}
        for attempt in attempts:
            for objective, batch in attempt.honeypots.items():
                honeypots[objective] = batch.joined_by(honeypots.get(objective))
        return LastAttempt({name: given for one in attempts for name, given in one.answers.items()}, honeypots)
