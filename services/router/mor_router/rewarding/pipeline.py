"""Reward pipeline: groups in, rewards out, with an explanation of every client's part.

The reward stage and ``/v1/reward`` call ``RewardPipeline.reward``. Steps for the groups of one objective:

1. plan      ``clients.pool`` and ``objectives.active_gates`` -> ``ScoringPlan``: clients with weight, and shadows
2. weights   ``embedding`` and the gates -> ``ObjectiveWeights`` of each group
3. scores    ``clients.scoring`` calls the clients; ``trust.honeypots`` may follow with a honeypot call
4. fusion    ``mathematics.group_fusion`` -> ``GroupReward``, or ``Unrewarded`` without a quorum
5. record    ``client_scores`` and ``influence``; ``trust.disagreement_monitor`` and ``trust.drift`` observe
6. audit     ``trust.auditor`` chooses groups of runs at random, to be labelled later
"""

from __future__ import annotations

import asyncio
import heapq
import json
import time
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from jaxtyping import Float
from mor_core import tracing
from mor_core.errors import Conflict, MorError, NotFound
from mor_core.failures import describe_failure
from mor_core.objectives import RequestedObjective
from mor_core.wire import GroupReward, RewardExplanation, RewardItem, ScoreItem
from numpy import ndarray

from mor_router import metrics
from mor_router.clients.caller import RUNS, Caller
from mor_router.clients.pool import ClientPool
from mor_router.clients.reliability import Reliability
from mor_router.clients.responses import ClientResponse
from mor_router.clients.scoring import ClientResponses, ScoreBatch, ScoreRequester
from mor_router.config import RouterSettings
from mor_router.embedding import Embedder, GateInput
from mor_router.mathematics.fusion import FusionChoice
from mor_router.mathematics.gate import NoClientAvailable
from mor_router.mathematics.group_fusion import ObjectiveWeights, blended_weights, fuse
from mor_router.mathematics.mixture import Mixture
from mor_router.mathematics.quorum import NoQuorum
from mor_router.mathematics.standardise import Standardiser
from mor_router.mathematics.suspicion import situations
from mor_router.objectives.active_gates import ActiveGates, GateResolver, ObjectivePart
from mor_router.objectives.objective_store import Objective
from mor_router.rewarding import client_scores
from mor_router.rewarding.influence import InfluenceLog
from mor_router.rewarding.recent_scores import RecentScores
from mor_router.rewarding.scoring_plan import ScoringPlan, make_plan
from mor_router.rewarding.vain_waits import vain_waits
from mor_router.trust.auditor import Auditor, RewardedGroup
from mor_router.trust.disagreement_monitor import DisagreementMonitor
from mor_router.trust.drift import Drift
from mor_router.trust.honeypots import HoneypotCall, Honeypots


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


class RewardPipeline:
    """Pipeline from groups to rewards, for the reward stage and for ``/v1/reward``."""

    def __init__(
        self,
        *,
        settings: RouterSettings,
        pool: ClientPool,
        requester: ScoreRequester,
        reliability: Reliability,
        gate_resolver: GateResolver,
        recent: RecentScores,
        influences: InfluenceLog,
        honeypots: Honeypots,
        drift: Drift,
        disagreement: DisagreementMonitor,
        auditor: Auditor,
        embedder: Embedder,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._requester = requester
        self._reliability = reliability
        self._gate_resolver = gate_resolver
        self._recent = recent
        self._influences = influences
        self._honeypots = honeypots
        self._drift = drift
        self._disagreement = disagreement
        self._auditor = auditor
        self._embedder = embedder

    async def reward(
        self,
        groups: GroupBatch,
        deadline_s: float,
        *,
        fusion: FusionChoice | None = None,
        known: Mapping[str, Mapping[str, ClientResponse]] | None = None,
        retry_s: float | None = None,
        caller: Caller = RUNS,
    ) -> tuple[list[GroupOutcome], ClientResponses]:
        """Reward ``groups``; return an outcome for each, in their order, and the good answers.

        The good answers are passed as ``known`` when a group is tried again, so that no client scores it twice.
        ``retry_s``: seconds after which the caller tries groups without a reward again, by default those of the first
        retry. Groups of another ``caller`` than the runs change nothing that the router has learned: no recent scores,
        influence, reliability, model, disagreement, honeypot or metric of scores follows from them.

        Raises:
            Conflict: a gate cannot be served.
        """
        by_objective: dict[str, list[RewardItem]] = {}
        for item in groups.items:
            by_objective.setdefault(json.dumps(item.objective, sort_keys=True), []).append(item)
        parts = await asyncio.gather(
            *(
                self._reward_objective(
                    replace(groups, items=items), deadline_s, fusion, known, retry_s=retry_s, caller=caller
                )
                for items in by_objective.values()
            )
        )
        outcomes = {outcome.item_id: outcome for part, _ in parts for outcome in part}
        answers = {item_id: by_client for _, part in parts for item_id, by_client in part.items()}
        return [outcomes[item.item_id] for item in groups.items], answers

    async def gate_weights(
        self, x: GateInput, gates: ActiveGates, weighted_clients: Collection[str]
    ) -> tuple[ObjectiveWeights, ...]:
        """Compute each objective's weights for an input, over those of ``weighted_clients`` that are called for it.

        Raises:
            NoClientAvailable: there are no such clients, or an objective's gate has none of them.
            Invalid: an image cannot be decoded.
        """
        if not weighted_clients:
            raise NoClientAvailable("no active client is in the gate; PATCH a client to active, or fit the objective")
        return self._objective_weights(await self._embedder.inputs([x]), gates, weighted_clients)

    async def plan(self, objective: RequestedObjective | None, fusion: FusionChoice | None = None) -> ScoringPlan:
        """Plan the scoring of groups with this objective by the clients and gates that are active now.

        Raises:
            NotFound: a blend names an unknown objective, or a name has an unknown gate version.
            Conflict: the gate cannot be served.
        """
        records = dict(self._pool.records)
        active = [name for name, record in records.items() if record.state == "active"]
        gates = await self._gate_resolver.resolve(objective, active)
        return make_plan(records, gates, fusion or self._settings.fusion)

    def _objective_weights(
        self, inputs: Float[ndarray, "1 features"], gates: ActiveGates, weighted_clients: Collection[str]
    ) -> tuple[ObjectiveWeights, ...]:
        found = tuple(_weights_of(part, inputs, weighted_clients) for part in gates.parts)
        most = self._settings.most_clients
        if most is None or len(weighted_clients) <= most:
            return found
        weights = blended_weights(found)
        called = heapq.nlargest(most, weights, key=weights.__getitem__)
        return tuple(_weights_of(part, inputs, called) for part in gates.parts)

    async def _reward_objective(
        self,
        groups: GroupBatch,
        deadline_s: float,
        fusion: FusionChoice | None,
        known: Mapping[str, Mapping[str, ClientResponse]] | None,
        *,
        retry_s: float | None,
        caller: Caller,
    ) -> tuple[list[GroupOutcome], ClientResponses]:
        """Reward groups that share one objective."""
        try:
            async with asyncio.timeout(deadline_s):
                plan = await self.plan(groups.items[0].objective, fusion)
        except (NotFound, Conflict, TimeoutError) as error:  # of this objective: the other groups of the batch go on
            kind = (fusion or self._settings.fusion).kind
            late = f"the objective's text was not embedded in {deadline_s:g} s"
            problem = late if isinstance(error, TimeoutError) else describe_failure(error)
            unrewarded = Unrewarded(problem=problem, clients=(), gate_version=0, fusion=kind)
            return [GroupOutcome(item.item_id, unrewarded, None) for item in groups.items], {}
        items = [
            ScoreItem(item_id=g.item_id, messages=g.messages, responses=g.responses, objective=plan.gates.text)
            for g in groups.items
        ]
        learns = caller == RUNS
        seen = {item.item_id for item in items if self._honeypots.known_picture(item.messages)}
        if learns and known is None:
            self._offer_honeypots(groups, plan, deadline_s)
        started = time.perf_counter()
        gate_weights = asyncio.gather(*(self._try_gate_weights(item, groups, plan, deadline_s) for item in items))
        try:
            called = await self._called_clients(items, gate_weights, plan)
            batch = ScoreBatch(items, groups.images, groups.traces)
            answers = await self._requester.fan_out(batch, called, plan.shadows, deadline_s, known=known, caller=caller)
            standardisers = await self._standardisers(plan.gates, answers, remember=learns and known is None)
            found = await gate_weights
        finally:
            gate_weights.cancel()  # nobody embeds for a caller that has gone
        outcomes = []
        for item, weights in zip(items, found, strict=True):
            with tracing.span("fuse", parent=groups.traces.get(item.item_id), gate_version=plan.gates.version):
                shape = situations(item.responses, known_picture=item.item_id in seen)
                result = self._result(weights, answers[item.item_id], plan, standardisers, shape, learns=learns)
                outcomes.append(GroupOutcome(item.item_id, result, plan.gates.note))
        if learns:
            again = {o.item_id for o in outcomes if isinstance(o.result, Unrewarded) and o.result.outage}
            pause_s = self._settings.group_retry_s if retry_s is None else retry_s
            await self._reliability.record(vain_waits(answers, known or {}, called, again, pause_s))
            await self._audit(groups, plan, outcomes, found, seen)
            await self._influences.record([o.result for o in outcomes if isinstance(o.result, GroupReward)])
            await self._record_models(plan.gates, answers)
        slowest = max((a.seconds or 0.0 for by_client in answers.values() for a in by_client.values()), default=0.0)
        metrics.OVERHEAD.observe(max(0.0, time.perf_counter() - started - slowest))
        good = {
            item_id: {name: answer for name, answer in by_client.items() if answer.status == "ok"}
            for item_id, by_client in answers.items()
        }
        return outcomes, good

    async def _called_clients(
        self,
        items: Sequence[ScoreItem],
        gate_weights: Awaitable[Sequence[tuple[ObjectiveWeights, ...] | str]],
        plan: ScoringPlan,
    ) -> dict[str, Collection[str]]:
        """Map each item to the weighted clients to call. Only a limit on clients makes this wait for the weights."""
        if self._settings.most_clients is None:
            return {item.item_id: plan.weighted_clients for item in items}
        return {
            item.item_id: () if isinstance(weights, str) else tuple(blended_weights(weights))
            for item, weights in zip(items, await gate_weights, strict=True)
        }

    def _offer_honeypots(self, groups: GroupBatch, plan: ScoringPlan, deadline_s: float) -> None:
        """Let a honeypot call follow this one."""
        if (objective := _labelled_objective(plan)) is not None:
            call = HoneypotCall(
                objective=objective,
                gate=plan.gates.version,
                groups=[(item.messages, item.responses) for item in groups.items],
                clients_for=partial(self._clients_for, plan),
                deadline_s=deadline_s,
            )
            self._honeypots.follow(call)

    async def _audit(
        self,
        groups: GroupBatch,
        plan: ScoringPlan,
        outcomes: Sequence[GroupOutcome],
        gate_weights: Sequence[tuple[ObjectiveWeights, ...] | str],
        seen: Collection[str],
    ) -> None:
        """Let the rewarded groups of runs be audited. The clients have answered, so none can know which ones are.

        ``seen``: items whose pictures were sent before.
        """
        objective = _labelled_objective(plan)
        for item, outcome, weights in zip(groups.items, outcomes, gate_weights, strict=True):
            policy = groups.policies.get(item.item_id)
            if objective and policy and isinstance(outcome.result, GroupReward) and not isinstance(weights, str):
                known = item.item_id in seen
                group = RewardedGroup(item, groups.images, policy, outcome.result, weights[0], known)
                await self._auditor.consider(objective, group)

    def _clients_for(self, plan: ScoringPlan, inputs: Float[ndarray, " features"]) -> tuple[str, ...]:
        """Return all clients that would score a group with this input."""
        weighted: Collection[str] = ()
        if plan.weighted_clients:
            weighted = blended_weights(self._objective_weights(inputs[None], plan.gates, plan.weighted_clients))
        return (*weighted, *plan.shadows)

    async def _record_models(self, gates: ActiveGates, answers: ClientResponses) -> None:
        """Record the model of each client that answered with another than the one in the registry."""
        serves = {
            client: answer.model
            for by_client in answers.values()
            for client, answer in by_client.items()
            if answer.model is not None and client in gates.clients
        }
        for client, model in serves.items():
            if (record := self._pool.records.get(client)) is not None and record.model != model:
                await self._drift.record_model(client, model)

    async def _try_gate_weights(
        self, item: ScoreItem, groups: GroupBatch, plan: ScoringPlan, deadline_s: float
    ) -> tuple[ObjectiveWeights, ...] | str:
        """Compute a group's gate weights, or return why there are none."""
        with tracing.span("gate", parent=groups.traces.get(item.item_id)) as span:
            try:
                async with asyncio.timeout(deadline_s):
                    return await self.gate_weights(
                        GateInput(item.messages, groups.images), plan.gates, plan.weighted_clients
                    )
            except TimeoutError:
                problem = f"the input was not embedded in {deadline_s:g} s"
                span.fail(problem)
                return problem
            except (MorError, ValueError) as error:
                span.fail(reason := describe_failure(error))
                return reason

    async def _standardisers(
        self, gates: ActiveGates, answers: ClientResponses, *, remember: bool
    ) -> tuple[Mapping[str, Standardiser], ...]:
        """Return the clients' standardisers for each objective; those of the cold start come from recent scores."""
        models = [part.gate for part in gates.parts]
        cold = next((model.clients for model in models if not isinstance(model, Mixture)), ())
        recent = await self._recent_standardisers(cold, answers, remember=remember)
        return tuple(
            dict(zip(model.clients, model.standardisers, strict=True)) if isinstance(model, Mixture) else recent
            for model in models
        )

    async def _recent_standardisers(
        self, clients: Sequence[str], answers: ClientResponses, *, remember: bool
    ) -> dict[str, Standardiser]:
        found: dict[str, Standardiser] = {}
        for client in clients:
            given = [a for by_client in answers.values() if (a := by_client.get(client)) and a.scores and a.model]
            if given and given[0].model is not None:
                groups = [answer.scores for answer in given if answer.scores]
                fitted = await self._recent.standardiser(client, given[0].model, groups, remember=remember)
                # A single response has no difference to be measured by; its reward is the level, 0 by definition.
                found[client] = fitted or Standardiser(1.0, 0.0, groups[0][0], 0.0, 0.0)
        return found

    def _result(
        self,
        gate_weights: tuple[ObjectiveWeights, ...] | str,
        answers: Mapping[str, ClientResponse],
        plan: ScoringPlan,
        standardisers: Sequence[Mapping[str, Standardiser]],
        shape: tuple[str, ...],
        *,
        learns: bool,
    ) -> GroupReward | Unrewarded:
        """Fuse one group's scores, or explain why it has no reward."""
        used: dict[str, Any] = {
            "objectives": plan.gates.objectives,
            "gate_version": plan.gates.version,
            "fusion": plan.fusion.kind,
        }
        unweighted = client_scores.unweighted(plan, answers)
        if isinstance(gate_weights, str):
            return Unrewarded(problem=gate_weights, clients=unweighted, **used)
        weights = blended_weights(gate_weights)
        if learns:
            client_scores.observe_models(plan, weights, answers)
        raw = {name: a.scores for name in weights if (a := answers[name]).scores is not None}
        fused = fuse(
            raw,
            objective_weights=gate_weights,
            standardisers=standardisers,
            fusion=plan.fusion,
            quorum=self._settings.quorum,
            declined=[name for name in weights if answers[name].scores is None and not answers[name].of_call],
            suspects=self._auditor.suspects(objective, shape) if (objective := _labelled_objective(plan)) else (),
        )
        weighted = client_scores.weighted(plan, weights, answers, fused)
        clients = weighted + client_scores.not_called(plan, weights) + unweighted
        if isinstance(fused, NoQuorum):
            reasons = "; ".join(
                f"{line.client}: {line.status}, {line.detail}" for line in weighted if line.status != "ok"
            )
            problem = (
                f"the clients that answered held {fused.held:.2f} of the gate's weight, "
                f"{self._settings.quorum:g} is wanted (MOR_QUORUM); {reasons}"
            )
            outage = any(answers[name].of_call for name in weights)
            return Unrewarded(problem=problem, clients=clients, outage=outage, **used)
        if learns:
            client_scores.observe(fused, gate_weights)
            if len(plan.gates.parts) == 1:
                self._disagreement.observe(plan.gates.parts[0], fused)
        return GroupReward(rewards=tuple(fused.rewards.tolist()), clients=clients, entropy=fused.entropy, **used)


def _labelled_objective(plan: ScoringPlan) -> Objective | None:
    """Return the objective whose labels apply to these groups. Blends have none: a label is for one objective."""
    objective = plan.gates.parts[0].objective
    single = len(plan.gates.parts) == 1 and objective is not None and plan.gates.text == objective.text
    return objective if single else None


def _weights_of(
    part: ObjectivePart, inputs: Float[ndarray, "1 features"], weighted_clients: Collection[str]
) -> ObjectiveWeights:
    weights, slopes = part.gate.weights(inputs, weighted_clients)[0], part.gate.slopes(inputs)[0]
    places = {client: k for k, client in enumerate(part.gate.clients) if client in weighted_clients}
    return ObjectiveWeights(
        part.share,
        {client: float(weights[k]) for client, k in places.items()},
        {client: float(slopes[k]) for client, k in places.items()},
        float(part.gate.ood_score(inputs)[0]),
    )
