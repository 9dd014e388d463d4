"""Auditor: chooses live groups at random once the clients have answered, so that no client can recognise them.

Nothing that a client sees depends on the draw: calls, order, time and honeypots are the same. Chosen groups are stored
in the background, so that no reward waits for an audit or fails with it. Of the other groups, a random share is kept as
candidates: pairs of them may be proposed for labels.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import structlog
from mor_core.server_clock import SERVER_CLOCK
from mor_core.wire import ClientScore, GroupReward, ModelRef, RewardItem, image_hashes

from mor_router.embedding import Embedder, GateInput
from mor_router.mathematics.audit_draw import AuditBudget
from mor_router.mathematics.audit_test import AuditedGroup, distinct_pairs, worth
from mor_router.mathematics.drift_test import DriftBaseline
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights
from mor_router.objectives.objective_store import Objective
from mor_router.trust.audit_types import AuditScores, LiveAudit, draw_pair
from mor_router.trust.live_audits import AuditStore
from mor_router.trust.live_suspicion import LiveSuspicion
from mor_router.trust.waiting_groups import WaitingGroups

_MOST_STORING = 64
"""Chosen groups that are being stored at a time; rewards wait for room only when Redis is that far behind."""

log = structlog.get_logger(__name__)
_random = random.SystemRandom()  # a client that could predict the draws would behave in the groups that are chosen


@dataclass(frozen=True)
class RewardedGroup:
    """A live group with its reward, which may be audited."""

    item: RewardItem
    images: Mapping[str, bytes] = field(repr=False)
    policy: str
    """Run and weights version that sampled the responses."""
    reward: GroupReward
    weights: ObjectiveWeights
    fused: FusedGroup
    situations: tuple[str, ...]
    expected: Mapping[str, DriftBaseline]
    """The gate's baseline of each client."""


@dataclass(frozen=True)
class _Draw:
    """Outcome of the draw for a group that was chosen."""

    audited: bool
    """False: the group is a candidate for proposals."""
    probability: float
    pair: tuple[int, int]
    suspects: frozenset[str]


class Auditor:
    """Random choice of the live groups that are labelled; ``share`` is that of objectives without their own.

    ``candidate_share`` of the others are kept as ``candidates``.
    """

    def __init__(
        self,
        store: AuditStore,
        candidates: WaitingGroups,
        embedder: Embedder,
        share: float,
        candidate_share: float,
    ) -> None:
        self._store = store
        self._candidates = candidates
        self._embedder = embedder
        self._share = share
        self._candidate_share = candidate_share
        self._storing: set[asyncio.Task[None]] = set()
        self._budgets: dict[str, tuple[float, AuditBudget]] = {}
        self._suspicion = LiveSuspicion()

    def share_of(self, objective: Objective) -> float:
        return self._share if objective.audit_share is None else objective.audit_share

    def suspects(self, objective: Objective, kind: tuple[str, ...], answered: Collection[str]) -> frozenset[str]:
        """Return the clients that are suspected in such a group, see ``mathematics.suspicion``."""
        return self._suspicion.suspects(objective.name, kind, answered)

    async def consider(self, objective: Objective, group: RewardedGroup) -> None:
        """Choose the group with the probability of ``audit_draw``.

        Groups of equal responses have nothing to compare.
        """
        suspects = self._suspicion.suspects(objective.name, group.situations, group.fused.clients)
        self._suspicion.observe(
            objective.name,
            group.reward.gate_version,
            group.fused,
            weights=group.weights,
            kind=group.situations,
            expected=group.expected,
        )
        budget = self._budget(objective)
        probability = budget.probability(_worth(group, suspects) if suspects else 0.0)
        if (pair := draw_pair(group.item.responses)) is None:
            return
        audited = _random.random() < probability
        if audited:
            budget.spend()
        elif _random.random() >= self._candidate_share:
            return
        draw = _Draw(audited, probability if audited else self._candidate_share, pair, suspects)
        while len(self._storing) >= _MOST_STORING:
            await asyncio.wait(self._storing, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._keep(objective.name, group, draw))
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def settled(self) -> None:
        """Wait until every chosen group is stored."""
        if self._storing:
            await asyncio.wait(self._storing)

    async def _keep(self, objective: str, group: RewardedGroup, draw: _Draw) -> None:
        try:
            audit = await self._audit(group, draw)
            if draw.audited:
                await self._store.add(objective, audit)
            else:
                await self._candidates.add(objective, audit, audit.at)
        except Exception as error:  # an audit that is lost harms no reward
            log.error("a chosen group could not be stored", objective=objective, exc_info=error)

    async def _audit(self, group: RewardedGroup, draw: _Draw) -> LiveAudit:
        messages = group.item.messages
        [vector] = await self._embedder.inputs([GateInput(messages, group.images)])
        return LiveAudit(
            at=SERVER_CLOCK.now(),
            gate=group.reward.gate_version,
            policy=group.policy,
            probability=draw.probability,
            support=1 - group.weights.ood_score,
            rewards=group.reward.rewards,
            clients=tuple(
                _scores(line, line.model, line.raw, group.weights)
                for line in group.reward.clients
                if line.raw is not None and line.model is not None
            ),
            embedding=vector.astype(np.float32).tobytes(),
            messages=messages,
            responses=group.item.responses,
            images={digest: group.images[digest] for digest in image_hashes(messages)},
            pair=draw.pair,
            domain=group.item.domain,
            public=group.item.public,
            situations=group.situations,
            suspects=tuple(sorted(draw.suspects)),
        )

    def _budget(self, objective: Objective) -> AuditBudget:
        """Return the objective's budget; a changed share starts a new one."""
        share = self.share_of(objective)
        known, budget = self._budgets.get(objective.name, (None, AuditBudget(share)))
        if known != share:
            budget = AuditBudget(share)
        self._budgets[objective.name] = share, budget
        return budget


def _worth(group: RewardedGroup, suspects: Collection[str]) -> float:
    """Compute what the group's labels would be worth as evidence on one of the suspects at least."""
    clients = group.fused.clients
    unlabelled = AuditedGroup(
        pairs=distinct_pairs(group.item.responses),
        scores=dict(zip(clients, group.fused.standardised, strict=True)),
        weights=dict(zip(clients, group.fused.weights.tolist(), strict=True)),
        slopes={client: group.weights.slopes.get(client, 0.0) for client in clients},
        rewards=group.fused.rewards,
        support=1 - group.weights.ood_score,
    )
    return max(worth(unlabelled, client) for client in suspects)


def _scores(line: ClientScore, model: ModelRef, raw: tuple[float, ...], weights: ObjectiveWeights) -> AuditScores:
    return AuditScores(
        client=line.client,
        model=model,
        raw=raw,
        standardised=line.standardised,
        weight=weights.fit_weights.get(line.client, 0.0) if line.weight else 0.0,
        slope=weights.slopes.get(line.client, 0.0),
    )
