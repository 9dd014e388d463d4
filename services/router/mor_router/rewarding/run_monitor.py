"""Observation of the groups of runs: metrics, influence, audits, and the clients suspected in later groups.

Groups of other callers change nothing here: no metric, audit, suspicion, influence, model or reliability
follows from them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mor_core.wire import GroupReward, Messages, ModelRef, RewardItem

from mor_router.clients.pool import ClientPool
from mor_router.clients.reliability import Reliability
from mor_router.clients.responses import ClientResponse
from mor_router.clients.scoring import ClientResponses
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights
from mor_router.mathematics.live_agreement import live_agreements
from mor_router.mathematics.suspicion import situations
from mor_router.objectives.objective_store import Objective
from mor_router.rewarding import client_scores
from mor_router.rewarding.gate_weights import NoWeights
from mor_router.rewarding.group_batch import GroupBatch, Unrewarded
from mor_router.rewarding.influence import InfluenceLog
from mor_router.rewarding.scoring_plan import ScoringPlan
from mor_router.rewarding.vain_waits import vain_waits
from mor_router.trust.auditor import Auditor, RewardedGroup
from mor_router.trust.disagreement_monitor import DisagreementMonitor
from mor_router.trust.drift import Drift
from mor_router.trust.honeypots import Honeypots


@dataclass(frozen=True)
class FusionResult:
    """One group after fusion."""

    item: RewardItem
    situations: tuple[str, ...]
    """See ``mathematics.suspicion``."""
    weights: tuple[ObjectiveWeights, ...] | NoWeights
    """Gate weights for each objective, or why there are none."""
    fused: FusedGroup | None
    """``None`` without a quorum."""
    result: GroupReward | Unrewarded


class RunMonitor:
    """Monitor of the groups of runs: audits, disagreement, models, influence and reliability."""

    def __init__(
        self,
        *,
        pool: ClientPool,
        reliability: Reliability,
        influences: InfluenceLog,
        honeypots: Honeypots,
        drift: Drift,
        disagreement: DisagreementMonitor,
        auditor: Auditor,
        group_retry_s: float,
    ) -> None:
        self._pool = pool
        self._reliability = reliability
        self._influences = influences
        self._honeypots = honeypots
        self._drift = drift
        self._disagreement = disagreement
        self._auditor = auditor
        self._group_retry_s = group_retry_s

    def situations(self, messages: Messages, responses: Sequence[str]) -> tuple[str, ...]:
        """Return the situations of a group, before it is sent."""
        return situations(responses, known_picture=self._honeypots.known_picture(messages))

    def suspects(self, plan: ScoringPlan, situations: tuple[str, ...], answered: Collection[str]) -> Collection[str]:
        """Return the clients that are suspected in such a group, of those that ``answered`` it."""
        objective = labelled_objective(plan)
        return () if objective is None else self._auditor.suspects(objective, situations, answered)

    async def observe(
        self,
        groups: GroupBatch,
        plan: ScoringPlan,
        fusions: Sequence[FusionResult],
        answers: ClientResponses,
        *,
        known: Mapping[str, Mapping[str, ClientResponse]],
        called: Mapping[str, Collection[str]],
        retry_s: float | None,
    ) -> None:
        """Learn from a batch of groups that share one objective.

        ``known``: answers of earlier attempts. ``called``: item -> weighted clients. ``retry_s``: seconds after which
        groups without a reward are tried again, by default those of the first retry.
        """
        if not groups.all_clients:  # such groups wait for everyone, and would not go on without an unreliable client
            again = {o.item.item_id for o in fusions if isinstance(o.result, Unrewarded) and o.result.awaited}
            pause_s = self._group_retry_s if retry_s is None else retry_s
            await self._reliability.record(vain_waits(answers, known, called, again, pause_s))
        for group in fusions:
            await self._observe_group(groups, plan, group)
        await self._influences.record([o.result for o in fusions if isinstance(o.result, GroupReward)])
        await self._observe_models(plan, answers)

    async def _observe_group(self, groups: GroupBatch, plan: ScoringPlan, group: FusionResult) -> None:
        """Compare the clients of a rewarded group, and let it be audited: they have answered, so none can know it."""
        if group.fused is None or isinstance(group.weights, NoWeights) or isinstance(group.result, Unrewarded):
            return
        client_scores.observe(group.fused, group.weights)
        [part, *others] = plan.gates.parts
        if part.objective is None or others:
            return
        agreements = live_agreements(group.fused, part.expected)
        self._disagreement.observe(part.objective.name, part.version, agreements)
        policy, objective = groups.policies.get(group.item.item_id), labelled_objective(plan)
        if objective is not None and policy:
            audited = RewardedGroup(
                item=group.item,
                images=groups.images,
                policy=policy,
                reward=group.result,
                weights=group.weights[0],
                fused=group.fused,
                situations=group.situations,
                expected=part.expected,
            )
            await self._auditor.consider(objective, audited)

    async def _observe_models(self, plan: ScoringPlan, answers: ClientResponses) -> None:
        """Observe the model of each client, and record it where the registry has another one."""
        serves: dict[str, ModelRef] = {
            client: answer.model
            for by_client in answers.values()
            for client, answer in by_client.items()
            if answer.model is not None and client in plan.gates.clients
        }
        client_scores.observe_models(plan, serves)
        for client, model in serves.items():
            if (record := self._pool.records.get(client)) is not None and record.model != model:
                await self._drift.record_model(client, model)


def labelled_objective(plan: ScoringPlan) -> Objective | None:
    """Return the objective whose labels apply to these groups. Blends have none: a label is for one objective."""
    objective = plan.gates.parts[0].objective
    single = len(plan.gates.parts) == 1 and objective is not None and plan.gates.text == objective.text
    return objective if single else None
