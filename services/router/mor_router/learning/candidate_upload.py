"""Upload of unlabelled pairs, which clients score so that the router can propose some of them for labels.

A client is sent what its rule allows, as at a fit. A pair whose picture would be a honeypot's is sent to nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
from mor_core.proposals import CandidateCounts
from mor_core.server_clock import SERVER_CLOCK
from mor_core.wire import image_hashes

from mor_router.audit import AuditLog
from mor_router.clients.pool import ClientPool
from mor_router.embedding import Embedder, GateInput
from mor_router.objectives.anchor_holdout import AnchorHoldout
from mor_router.objectives.anchor_scores import AnchorScorer, AnchorScores
from mor_router.objectives.objective_store import COLD_START, Anchor, Objective, ObjectiveStore, digest_of
from mor_router.trust.audit_types import AuditScores, LiveAudit, pair_digest
from mor_router.trust.live_audits import AuditStore
from mor_router.trust.waiting_groups import WaitingGroups


class CandidateUpload:
    """Reception of unlabelled pairs. Each upload takes the place of the one before."""

    def __init__(
        self,
        *,
        objectives: ObjectiveStore,
        embedder: Embedder,
        pool: ClientPool,
        scorer: AnchorScorer,
        holdout: AnchorHoldout,
        audits: AuditStore,
        candidates: WaitingGroups,
        log: AuditLog,
    ) -> None:
        self._objectives = objectives
        self._embedder = embedder
        self._pool = pool
        self._scorer = scorer
        self._holdout = holdout
        self._audits = audits
        self._candidates = candidates
        self._log = log

    async def put(self, name: str, pairs: Sequence[Anchor], images: Mapping[str, bytes], by: str) -> CandidateCounts:
        """Have every client score ``pairs``, whose order means nothing, and keep them.

        Raises:
            NotFound: no such objective.
            Invalid: too many pairs, or too large ones.
        """
        objective = await self._objectives.get(name)
        pairs = list({frozenset(_digests(pair)): pair for pair in pairs}.values())
        known = await self._known(objective)
        fresh = [pair for pair in pairs if known.isdisjoint(_digests(pair))]
        shown = await self._holdout.never_held_out(fresh)
        self._candidates.check_bounds([_candidate(pair, images) for pair in shown])
        await self._pool.refresh()
        called = self._pool.names_in_state("active", "probation")
        scored = await asyncio.gather(*(self._scorer.score(client, objective, shown, images) for client in called))
        await self._scorer.forget(objective, scored, shown)
        inputs = [GateInput(pair.messages, images) for pair in shown]
        vectors = await self._embedder.inputs(inputs) if inputs else np.zeros((0, self._embedder.size))
        candidates = [
            _candidate(pair, images, _scores(pair, scored), vector.astype(np.float32).tobytes())
            for pair, vector in zip(shown, vectors, strict=True)
        ]
        kept = [candidate for candidate in candidates if candidate.clients]
        await self._candidates.replace(name, kept, SERVER_CLOCK.now())
        self._log.record("candidates", name, by, pairs=len(kept))
        return CandidateCounts(
            objective=name,
            kept=len(kept),
            labelled=len(pairs) - len(fresh),
            held_back=len(fresh) - len(shown),
            unscored=len(shown) - len(kept),
        )

    async def _known(self, objective: Objective) -> set[str]:
        """Return the digests of pairs that are anchors, or wait for a label."""
        anchors = await self._objectives.anchors(objective.name) if objective.anchors else ()
        known = {anchor.digest for anchor in anchors}
        for waiting in (await self._audits.proposed.all(objective.name)).values():
            known.add(pair_digest(waiting, waiting.pair))
        return known


def _digests(pair: Anchor) -> tuple[str, str]:
    """Return the digests of a pair with either response as the better one."""
    return pair.digest, digest_of(pair.messages, pair.rejected, pair.chosen)


def _scores(pair: Anchor, scored: Sequence[AnchorScores]) -> tuple[AuditScores, ...]:
    return tuple(
        AuditScores(
            client=line.client, model=line.model, raw=line.scores[pair.digest], standardised=None, weight=0, slope=0
        )
        for line in scored
        if line.model is not None and pair.digest in line.scores
    )


def _candidate(
    pair: Anchor, images: Mapping[str, bytes], clients: tuple[AuditScores, ...] = (), embedding: bytes = b""
) -> LiveAudit:
    """Return an uploaded pair as a group without a label."""
    return LiveAudit(
        at=SERVER_CLOCK.now(),
        gate=COLD_START,
        policy=None,
        probability=1,
        support=0,
        rewards=(),
        clients=clients,
        embedding=embedding,
        messages=pair.messages,
        responses=(pair.chosen, pair.rejected),
        images={digest: images[digest] for digest in image_hashes(pair.messages)},
        pair=(0, 1),
        domain=pair.domain,
        public=pair.public,
    )
