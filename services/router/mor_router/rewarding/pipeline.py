"""Reward pipeline: groups in, rewards out, with an explanation of every client's part.

The reward stage and ``/v1/reward`` call ``RewardPipeline.reward``. Steps for the groups of one objective:

1. plan      ``clients.pool`` and ``objectives.active_gates`` -> ``ScoringPlan``: clients with weight, and shadows
2. weights   ``gate_weights`` embeds the inputs -> ``ObjectiveWeights`` of each group
3. scores    ``clients.scoring`` calls the clients; ``trust.honeypots`` may add an anchor to the groups of the call
4. fusion    ``mathematics.group_fusion`` -> ``GroupReward``, or ``Unrewarded`` without a quorum
5. observe   ``run_monitor`` learns from the groups of runs: metrics, influence, disagreement, models and audits
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mor_core import tracing
from mor_core.errors import Conflict, NotFound
from mor_core.failures import describe_failure
from mor_core.objectives import RequestedObjective
from mor_core.wire import GroupReward, PromptOrigin, RewardItem, ScoreItem

from mor_router import metrics
from mor_router.clients.caller import RUNS, Caller
from mor_router.clients.pool import ClientPool
from mor_router.clients.responses import ClientResponse
from mor_router.clients.scoring import ClientResponses, ScoreBatch, ScoreRequester
from mor_router.config import RouterSettings
from mor_router.embedding import GateInput
from mor_router.mathematics.fusion import FusionChoice
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights, blended_weights, fuse
from mor_router.mathematics.mixture import Mixture
from mor_router.mathematics.quorum import NoQuorum
from mor_router.mathematics.standardise import Standardiser
from mor_router.objectives.active_gates import ActiveGates, GateResolver
from mor_router.rewarding import client_scores
from mor_router.rewarding.gate_weights import GateWeights, NoWeights
from mor_router.rewarding.group_batch import GroupBatch, GroupOutcome, LastAttempt, Unrewarded
from mor_router.rewarding.recent_scores import RecentScores
from mor_router.rewarding.run_monitor import FusionResult, RunMonitor, labelled_objective
from mor_router.rewarding.scoring_plan import ScoringPlan, make_plan, with_unreliable_active
from mor_router.trust.honeypot_batch import HoneypotBatch, HoneypotCall
from mor_router.trust.honeypots import Honeypots


class RewardPipeline:
    """Pipeline from groups to rewards, for the reward stage and for ``/v1/reward``."""

    def __init__(
        self,
        *,
        settings: RouterSettings,
        pool: ClientPool,
        requester: ScoreRequester,
        gate_resolver: GateResolver,
        gate_weights: GateWeights,
        recent: RecentScores,
        honeypots: Honeypots,
        monitor: RunMonitor,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._requester = requester
        self._gate_resolver = gate_resolver
        self._gate_weights = gate_weights
        self._recent = recent
        self._honeypots = honeypots
        self._monitor = monitor

    async def reward(
        self,
        groups: GroupBatch,
        deadline_s: float,
        *,
        fusion: FusionChoice | None = None,
        known: LastAttempt | None = None,
        retry_s: float | None = None,
        caller: Caller = RUNS,
    ) -> tuple[list[GroupOutcome], LastAttempt]:
        """Reward ``groups``; return an outcome for each, in their order, and what the next attempt needs.

        That is passed as ``known`` when a group is tried again.
        ``retry_s``: seconds after which the caller tries groups without a reward again, by default those of the first
        retry. Groups of another ``caller`` than the runs change nothing that the router has learned: no recent scores,
        influence, reliability, model, disagreement, honeypot or metric of scores follows from them.

        Raises:
            Conflict: a gate cannot be served.
        """
        unasked = {origin: sorted(self._pool.unasked(origin)) for origin in {*groups.origins.values()}}
        alike: dict[str, list[RewardItem]] = {}
        """Objective, and clients that may not be asked, as JSON -> groups."""
        for item in groups.items:
            alike.setdefault(json.dumps([item.objective, unasked[item.origin]], sort_keys=True), []).append(item)
        parts = await asyncio.gather(
            *(
                self._reward_alike(
                    name, replace(groups, items=items), deadline_s, fusion, known, retry_s=retry_s, caller=caller
                )
                for name, items in alike.items()
            )
        )
        outcomes = {outcome.item_id: outcome for part, _ in parts for outcome in part}
        answers = {item_id: by_client for _, part in parts for item_id, by_client in part.answers.items()}
        honeypots = {name: left for _, part in parts for name, left in part.honeypots.items()}
        return [outcomes[item.item_id] for item in groups.items], LastAttempt(answers, honeypots)

    def try_honeypots_again(self, left: HoneypotBatch) -> None:
        """Try honeypots again whose groups are not."""
        self._honeypots.try_again(left)

    async def plan(
        self,
        objective: RequestedObjective | None,
        origin: PromptOrigin,
        fusion: FusionChoice | None = None,
        *,
        all_clients: bool = False,
    ) -> ScoringPlan:
        """Plan the scoring of groups with this objective by the clients and gates that are active now.

        ``origin``: one of the groups' origins, which all have the same clients that may not be asked.
        ``all_clients``: unreliable clients count as active.

        Raises:
            NotFound: a blend names an unknown objective, or a name has an unknown gate version.
            Conflict: the gate cannot be served.
        """
        records = dict(self._pool.records)
        if all_clients:
            records = {name: with_unreliable_active(record) for name, record in records.items()}
        unasked = self._pool.unasked(origin)
        active = [name for name, record in records.items() if record.state == "active" and name not in unasked]
        gates = await self._gate_resolver.resolve(objective, active)
        return make_plan(records, gates, fusion or self._settings.fusion, self._settings.most_newcomers, unasked)

    async def _reward_alike(
        self,
        name: str,
        groups: GroupBatch,
        deadline_s: float,
        fusion: FusionChoice | None,
        known: LastAttempt | None,
        *,
        retry_s: float | None,
        caller: Caller,
    ) -> tuple[list[GroupOutcome], LastAttempt]:
        """Reward groups with one objective that the same clients may be asked about; ``name``: its key in the last
        attempt's honeypots."""
        try:
            async with asyncio.timeout(deadline_s):
                plan = await self.plan(
                    groups.items[0].objective, groups.items[0].origin, fusion, all_clients=groups.all_clients
                )
        except (NotFound, Conflict, TimeoutError) as error:  # of this objective: the other groups of the batch go on
            kind = (fusion or self._settings.fusion).kind
            late = f"the objective's text was not embedded in {deadline_s:g} s"
            problem = late if isinstance(error, TimeoutError) else describe_failure(error)
            missing = {} if isinstance(error, NotFound) else {"embedder" if problem == late else "gate": problem}
            unrewarded = Unrewarded(problem=problem, missing=missing, clients=(), gate_version=0, fusion=kind)
            return [GroupOutcome(item.item_id, unrewarded, None) for item in groups.items], LastAttempt({}, {})
        items = [
            ScoreItem(item_id=g.item_id, messages=g.messages, responses=g.responses, objective=plan.gates.text)
            for g in groups.items
        ]
        first = caller == RUNS and known is None
        shapes = [self._monitor.situations(item.messages, item.responses) for item in items]
        before, waiting = (known.answers, known.honeypots) if known is not None else ({}, {})
        joined = self._joined_honeypots(groups, plan, deadline_s) if first else waiting.get(name)
        left: HoneypotBatch | None = None
        started = time.perf_counter()
        inputs = [GateInput(item.messages, groups.images) for item in items]
        traces = [groups.traces.get(item.item_id) for item in items]
        gate_weights = asyncio.create_task(self._gate_weights.of_groups(inputs, traces, plan, deadline_s))
        try:
            called = await self._called_clients(items, gate_weights, plan)
            batch = ScoreBatch(items, groups.images, groups.traces, groups.origins)
            if joined is None:
                answers = await self._requester.fan_out(
                    batch, called, plan.shadows, deadline_s, known=before, caller=caller
                )
            else:
                answers, left = await self._honeypots.fan_out(joined, batch, called, known=before)
            standardisers = await self._standardisers(plan.gates, answers, remember=first)
            found = await gate_weights
        finally:
            gate_weights.cancel()  # nobody embeds for a caller that has gone
        fusions = []
        for item, weights, situations in zip(groups.items, found, shapes, strict=True):
            with tracing.span("fuse", parent=groups.traces.get(item.item_id), gate_version=plan.gates.version):
                scored = [client for client, answer in answers[item.item_id].items() if answer.status == "ok"]
                suspects = self._monitor.suspects(plan, situations, scored)
                fused, result = self._result(
                    weights, answers[item.item_id], plan, standardisers, suspects, all_clients=groups.all_clients
                )
                fusions.append(FusionResult(item, situations, weights, fused, result))
        if caller == RUNS:
            await self._monitor.observe(groups, plan, fusions, answers, known=before, called=called, retry_s=retry_s)
        again = {}
        if left is not None and any(isinstance(group.result, Unrewarded) for group in fusions):
            again = {name: left}
        elif left is not None:
            self.try_honeypots_again(left)
        slowest = max((a.seconds or 0.0 for by_client in answers.values() for a in by_client.values()), default=0.0)
        metrics.OVERHEAD.observe(max(0.0, time.perf_counter() - started - slowest))
        good = {
            item_id: {client: answer for client, answer in by_client.items() if answer.status == "ok"}
            for item_id, by_client in answers.items()
        }
        outcomes = [GroupOutcome(group.item.item_id, group.result, plan.gates.note) for group in fusions]
        return outcomes, LastAttempt(good, again)

    async def _called_clients(
        self,
        items: Sequence[ScoreItem],
        gate_weights: Awaitable[Sequence[tuple[ObjectiveWeights, ...] | NoWeights]],
        plan: ScoringPlan,
    ) -> dict[str, Collection[str]]:
        """Map each item to the weighted clients to call. Only a limit on clients makes this wait for the weights."""
        if self._settings.most_clients is None:
            return {item.item_id: plan.weighted_clients for item in items}
        return {
            item.item_id: () if isinstance(weights, NoWeights) else tuple(blended_weights(weights))
            for item, weights in zip(items, await gate_weights, strict=True)
        }

    def _joined_honeypots(self, groups: GroupBatch, plan: ScoringPlan, deadline_s: float) -> HoneypotBatch | None:
        """Return the honeypots that go with this call, if any."""
        if (objective := labelled_objective(plan)) is None:
            return None
        call = HoneypotCall(
            objective=objective,
            gate=plan.gates.version,
            groups=[(item.messages, item.responses) for item in groups.items],
            weights_for=partial(self._gate_weights.of_embedded, plan),
            shadows=plan.shadows,
            deadline_s=deadline_s,
            quorum=self._settings.quorum,
            retry_s=self._settings.group_retry_s,
            unasked=frozenset(plan.unasked),
            all_clients=groups.all_clients,
        )
        return self._honeypots.join(call)

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
        gate_weights: tuple[ObjectiveWeights, ...] | NoWeights,
        answers: Mapping[str, ClientResponse],
        plan: ScoringPlan,
        standardisers: Sequence[Mapping[str, Standardiser]],
        suspects: Collection[str],
        *,
        all_clients: bool,
    ) -> tuple[FusedGroup | None, GroupReward | Unrewarded]:
        """Fuse one group's scores, or explain why it has no reward."""
        used: dict[str, Any] = {
            "objectives": plan.gates.objectives,
            "gate_version": plan.gates.version,
            "fusion": plan.fusion.kind,
        }
        unweighted = client_scores.unweighted(plan, answers)
        if isinstance(gate_weights, NoWeights):
            problem = gate_weights.problem
            missing = {gate_weights.missing: problem} if gate_weights.missing is not None else {}
            return None, Unrewarded(problem=problem, missing=missing, clients=unweighted, **used)
        weights = blended_weights(gate_weights)
        missing = {name: f"{a.status}, {a.detail}" for name in weights if (a := answers[name]).of_call}
        raw = {name: a.scores for name in weights if (a := answers[name]).scores is not None}
        fused: FusedGroup | NoQuorum
        failed = {name: f"error, {a.detail}" for name in weights if (a := answers[name]).may_change and not a.of_call}
        if all_clients and (missing or failed):
            fused = NoQuorum(sum(weights[name] for name in raw))
        else:
            fused = fuse(
                raw,
                objective_weights=gate_weights,
                standardisers=standardisers,
                fusion=plan.fusion,
                quorum=self._settings.quorum,
                declined=[name for name in weights if answers[name].scores is None and not answers[name].of_call],
                suspects=suspects,
            )
        weighted = client_scores.weighted(plan, weights, answers, fused)
        clients = weighted + client_scores.not_called(plan, weights) + unweighted
        if isinstance(fused, NoQuorum):
            reasons = "; ".join(
                f"{line.client}: {line.status}, {line.detail}" for line in weighted if line.status != "ok"
            )
            wanted = f"{self._settings.quorum:g} is wanted (MOR_QUORUM)"
            if all_clients:
                wanted = "all of it is wanted by a deterministic run"
            problem = f"the clients that answered held {fused.held:.2f} of the gate's weight, {wanted}; {reasons}"
            return None, Unrewarded(problem=problem, missing=missing, failed=failed, clients=clients, **used)
        rewards = tuple(fused.rewards.tolist())
        return fused, GroupReward(rewards=rewards, clients=clients, entropy=fused.entropy, **used)
