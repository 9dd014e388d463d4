"""Groups in, rewards out: fan-out, gate, calibration, fusion and the failure policy, with an account of all of it."""

from __future__ import annotations

import asyncio
import heapq
import json
import time
from collections.abc import Awaitable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from jaxtyping import Float
from mor_core import tracing
from mor_core.errors import MorError, NotFound
from mor_core.objectives import RequestedObjective
from mor_core.wire import ClientScore, ObjectiveShare, RewardItem, ScoreItem
from numpy import ndarray

from mor_router import metrics
from mor_router.clients.pool import Pool
from mor_router.clients.registry import ClientRecord
from mor_router.clients.responses import Answer
from mor_router.clients.scoring import Answers, Batch, Scoring
from mor_router.config import RouterSettings
from mor_router.embedding import Embedder, Input
from mor_router.mathematics.fuse import Lens, NoQuorum, combined, fuse
from mor_router.mathematics.fusion import FusionChoice
from mor_router.mathematics.mixture import Mixture
from mor_router.mathematics.standardise import Standardiser
from mor_router.objectives.active_gates import InForce, Part, ServedGates
from mor_router.rewarding import client_scores
from mor_router.rewarding.influence import Influences
from mor_router.rewarding.recent_scores import RecentScores
from mor_router.trust.disagreement_monitor import Agreement
from mor_router.trust.drift import Drift
from mor_router.trust.honeypots import Call, Decoys


@dataclass(frozen=True)
class Groups:
    """Groups to reward, and the images that they name."""

    items: Sequence[RewardItem]
    images: Mapping[str, bytes] = field(repr=False)
    traces: Mapping[str, str | None] = field(default_factory=dict)
    """Item -> ``traceparent`` of the span in which it is rewarded."""


@dataclass(frozen=True)
class Verdict:
    """What became of one group."""

    item_id: str
    rewards: tuple[float, ...] | None
    """Logits; ``None`` where there is no reward, and then ``problem`` says why."""
    clients: tuple[ClientScore, ...]
    objectives: tuple[ObjectiveShare, ...]
    """What was rewarded, largest share first."""
    gate_version: int
    fusion: str
    entropy: float
    note: str | None
    problem: str | None = None


@dataclass(frozen=True)
class Round:
    """Who is asked, and by which gate and fusion the answers are weighed."""

    force: InForce
    records: Mapping[str, ClientRecord]
    voters: Sequence[str]
    shadows: Sequence[str]
    """Asked without weight: on probation, enrolled after the gate was fitted, or stale."""
    stale: Mapping[str, str]
    """Client of the gate -> why its calibration does not hold any more."""
    fusion: FusionChoice


class Rewarder:
    def __init__(
        self,
        *,
        settings: RouterSettings,
        pool: Pool,
        scoring: Scoring,
        served: ServedGates,
        recent: RecentScores,
        influences: Influences,
        decoys: Decoys,
        drift: Drift,
        agreement: Agreement,
        embedder: Embedder,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._scoring = scoring
        self._served = served
        self._recent = recent
        self._influences = influences
        self._decoys = decoys
        self._drift = drift
        self._agreement = agreement
        self._embedder = embedder

    async def reward(
        self,
        groups: Groups,
        deadline_s: float,
        *,
        fusion: FusionChoice | None = None,
        known: Mapping[str, Mapping[str, Answer]] | None = None,
    ) -> tuple[list[Verdict], Answers]:
        """A verdict on each of ``groups``, in their order, and the good answers, to be given as ``known`` when a group
        is tried again.

        Raises:
            Conflict: a gate cannot be served.
        """
        alike: dict[str, list[RewardItem]] = {}
        for item in groups.items:
            alike.setdefault(json.dumps(item.objective, sort_keys=True), []).append(item)
        parts = await asyncio.gather(
            *(self._reward_alike(replace(groups, items=items), deadline_s, fusion, known) for items in alike.values())
        )
        verdicts = {verdict.item_id: verdict for part, _ in parts for verdict in part}
        answers = {item_id: by_client for _, part in parts for item_id, by_client in part.items()}
        return [verdicts[item.item_id] for item in groups.items], answers

    async def opinion(self, x: Input, force: InForce, voters: Collection[str]) -> tuple[Lens, ...]:
        """What the gate of each objective thinks, for an input, of those of ``voters`` that are asked about it.

        Raises:
            ValueError: there are none, or an objective has none among them.
            Invalid: an image cannot be decoded.
        """
        if not voters:
            raise ValueError("no active client is in the gate; PATCH a client to active, or fit the objective")
        return self._lenses(await self._embedder.inputs([x]), force, voters)

    def _lenses(
        self, inputs: Float[ndarray, "1 features"], force: InForce, voters: Collection[str]
    ) -> tuple[Lens, ...]:
        lenses = tuple(_lens(part, inputs, voters) for part in force.parts)
        most = self._settings.most_clients
        if most is None or len(voters) <= most:
            return lenses
        weights = combined(lenses)
        asked = heapq.nlargest(most, weights, key=weights.__getitem__)
        return tuple(_lens(part, inputs, asked) for part in force.parts)

    async def round(self, objective: RequestedObjective | None, fusion: FusionChoice | None = None) -> Round:
        """Who is asked about a group with this objective, and what is in force for it now.

        Raises:
            NotFound: a blend names an objective that is not there, or a name a gate version that it does not have.
            Conflict: the gate cannot be served.
        """
        records = dict(self._pool.records)
        active = [name for name, record in records.items() if record.state == "active"]
        force = await self._served.in_force(objective, active)
        known = [name for name in active if name in force.clients]
        stale = {name: why for name in known if (why := _stale(records[name], force)) is not None}
        # When all are stale an old calibration is better than none; each line of the account tells of it.
        voters = [name for name in known if name not in stale] or known
        shadows = [
            name for name, record in records.items() if record.state in ("active", "probation") and name not in voters
        ]
        return Round(force, records, voters, shadows, stale, fusion or self._settings.fusion)

    async def _reward_alike(
        self,
        groups: Groups,
        deadline_s: float,
        fusion: FusionChoice | None,
        known: Mapping[str, Mapping[str, Answer]] | None,
    ) -> tuple[list[Verdict], Answers]:
        """Groups of one objective."""
        try:
            now = await self.round(groups.items[0].objective, fusion)
        except NotFound as error:
            kind = (fusion or self._settings.fusion).kind
            return [Verdict(item.item_id, None, (), (), 0, kind, 0.0, None, str(error)) for item in groups.items], {}
        items = [
            ScoreItem(item_id=g.item_id, messages=g.messages, responses=g.responses, objective=now.force.text)
            for g in groups.items
        ]
        if known is None:
            self._copy(groups, now, deadline_s)
        started = time.perf_counter()
        opinions = asyncio.gather(*(self._opinion(item, groups, now) for item in items))
        voters = await self._asked(items, opinions, now)
        batch = Batch(items, groups.images, groups.traces)
        answers = await self._scoring.fan_out(batch, voters, now.shadows, deadline_s, known)
        standardisers = await self._standardisers(now.force, answers, first=known is None)
        verdicts = []
        for item, opinion in zip(items, await opinions, strict=True):
            with tracing.span("fuse", parent=groups.traces.get(item.item_id), gate_version=now.force.version):
                verdicts.append(self._verdict(item, opinion, answers[item.item_id], now, standardisers))
        await self._influences.note(
            [(verdict.objectives, verdict.clients) for verdict in verdicts if verdict.rewards is not None]
        )
        await self._note_renewed(now.force, answers)
        slowest = max((a.seconds or 0.0 for by_client in answers.values() for a in by_client.values()), default=0.0)
        metrics.OVERHEAD.observe(max(0.0, time.perf_counter() - started - slowest))
        good = {
            item_id: {name: answer for name, answer in by_client.items() if answer.status == "ok"}
            for item_id, by_client in answers.items()
        }
        return verdicts, good

    async def _asked(
        self, items: Sequence[ScoreItem], opinions: Awaitable[Sequence[tuple[Lens, ...] | str]], now: Round
    ) -> dict[str, Collection[str]]:
        """Item -> the clients with a say that are asked. The opinion is waited for only where it decides that."""
        if self._settings.most_clients is None:
            return {item.item_id: now.voters for item in items}
        return {
            item.item_id: () if isinstance(opinion, str) else tuple(combined(opinion))
            for item, opinion in zip(items, await opinions, strict=True)
        }

    def _copy(self, groups: Groups, now: Round, deadline_s: float) -> None:
        """Perhaps let a call of anchors follow that looks like the one that is going out. Blends carry none: an anchor
        has a label for one objective."""
        objective = now.force.parts[0].objective
        if len(now.force.parts) == 1 and objective is not None and now.force.text == objective.text:
            sizes = tuple(len(item.responses) for item in groups.items)
            self._decoys.follow(Call(objective, now.force.version, sizes, partial(self._hearers, now), deadline_s))

    def _hearers(self, now: Round, inputs: Float[ndarray, " features"]) -> tuple[str, ...]:
        """Everybody who is asked about a group with this input."""
        voters = combined(self._lenses(inputs[None], now.force, now.voters)) if now.voters else ()
        return (*voters, *now.shadows)

    async def _note_renewed(self, force: InForce, answers: Answers) -> None:
        """Tell of the clients that answered with another model than they are known to serve."""
        serves = {
            client: answer.model
            for by_client in answers.values()
            for client, answer in by_client.items()
            if answer.model is not None and client in force.clients
        }
        for client, model in serves.items():
            if (record := self._pool.records.get(client)) is not None and record.model != model:
                with suppress(NotFound):  # removed meanwhile
                    await self._drift.renewed(client, model)

    async def _opinion(self, item: ScoreItem, groups: Groups, now: Round) -> tuple[Lens, ...] | str:
        with tracing.span("gate", parent=groups.traces.get(item.item_id)) as span:
            try:
                return await self.opinion(Input(item.messages, groups.images), now.force, now.voters)
            except (MorError, ValueError) as error:
                span.fail(str(error))
                return str(error)

    async def _standardisers(
        self, force: InForce, answers: Answers, *, first: bool
    ) -> tuple[Mapping[str, Standardiser], ...]:
        """One set for each part in force."""
        servings = [part.serving for part in force.parts]
        cold = next((serving.clients for serving in servings if not isinstance(serving, Mixture)), ())
        recent = await self._recent_standardisers(cold, answers, first=first)
        return tuple(
            dict(zip(serving.clients, serving.standardisers, strict=True)) if isinstance(serving, Mixture) else recent
            for serving in servings
        )

    async def _recent_standardisers(
        self, clients: Sequence[str], answers: Answers, *, first: bool
    ) -> dict[str, Standardiser]:
        found: dict[str, Standardiser] = {}
        for client in clients:
            given = [a for by_client in answers.values() if (a := by_client.get(client)) and a.scores and a.model]
            if given and given[0].model is not None:
                groups = [answer.scores for answer in given if answer.scores]
                fitted = await self._recent.standardiser(client, given[0].model, groups, remember=first)
                # One response alone has no difference to be measured by; its reward is the level, 0 by definition.
                found[client] = fitted or Standardiser(1.0, 0.0, groups[0][0], 0.0, 0.0)
        return found

    def _verdict(
        self,
        item: ScoreItem,
        opinion: tuple[Lens, ...] | str,
        answers: Mapping[str, Answer],
        now: Round,
        standardisers: Sequence[Mapping[str, Standardiser]],
    ) -> Verdict:
        base = Verdict(
            item_id=item.item_id,
            rewards=None,
            clients=client_scores.others(now.records, now.shadows, now.stale, answers),
            objectives=now.force.objectives,
            gate_version=now.force.version,
            fusion=now.fusion.kind,
            entropy=0.0,
            note=now.force.note,
        )
        if isinstance(opinion, str):
            return replace(base, problem=opinion)
        weights = combined(opinion)
        raw = {name: a.scores for name in weights if (a := answers[name]).scores is not None}
        outcome = fuse(
            raw, lenses=opinion, standardisers=standardisers, fusion=now.fusion, quorum=self._settings.quorum
        )
        voters = client_scores.voters(weights, answers, outcome, [part.models for part in now.force.parts])
        base = replace(base, clients=voters + client_scores.unasked(now.voters, weights) + base.clients)
        if isinstance(outcome, NoQuorum):
            reasons = "; ".join(f"{v.client}: {v.status}, {v.detail}" for v in voters if v.status != "ok")
            return replace(
                base,
                problem=f"the clients that answered held {outcome.held:.2f} of the gate's weight, "
                f"{self._settings.quorum:g} is wanted (MOR_QUORUM); {reasons}",
            )
        client_scores.observe(outcome, opinion)
        if len(now.force.parts) == 1:
            self._agreement.note(now.force.parts[0], outcome)
        return replace(base, rewards=tuple(outcome.rewards.tolist()), entropy=outcome.entropy)


def _stale(record: ClientRecord, force: InForce) -> str | None:
    for part in force.parts:
        fitted = part.models.get(record.name)
        if fitted is not None and record.model is not None and record.model != fitted:
            return client_scores.stale(record.model, fitted)
    return None


def _lens(part: Part, inputs: Float[ndarray, "1 features"], voters: Collection[str]) -> Lens:
    weights, slopes = part.serving.weights(inputs, voters)[0], part.serving.slopes(inputs)[0]
    places = {client: k for k, client in enumerate(part.serving.clients) if client in voters}
    return Lens(
        part.share,
        {client: float(weights[k]) for client, k in places.items()},
        {client: float(slopes[k]) for client, k in places.items()},
        float(part.serving.beyond(inputs)[0]),
    )
