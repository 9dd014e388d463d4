"""Quarantine: the router stops calling a client that is useless everywhere, and readmits it when it becomes useful.

While there are too few anchors for a decision, such a client gets no weight.

Each client's scores of the newest anchors outlive the anchors' replacement, so that fits on fresh anchors accumulate.
A quarantined client still scores the anchors at each fit and is judged by that fit alone: earlier scores do not count
against it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from mor_core.errors import Conflict, NotFound
from mor_core.stored import StoredEntries
from mor_core.wire import Wire
from numpy import ndarray
from redis.asyncio import Redis

from mor_router.audit import AuditLog
from mor_router.clients.honeypot_scores import parse_vectors
from mor_router.clients.registry import ClientRecord, ClientRegistry
from mor_router.mathematics.sign_flip_test import LEAST_ANCHORS, LEAST_FOR_DOUBT, USEFUL, USELESS, p_value, region_cells
from mor_router.mathematics.standardise import fit_standardiser
from mor_router.objectives.anchor_scores import AnchorScores
from mor_router.objectives.objective_store import Objective
from mor_router.store import key, objective_names

_MOST_ANCHORS = 1280
"""Anchors kept for each client: twice as many as a quarantine needs."""
_EVIDENCE = StoredEntries("quarantine_evidence")
_VECTORS = StoredEntries("judged_embeddings")


class QuarantineEvidence(Wire):
    """A client's results on the latest anchors of one objective."""

    differences: dict[str, float]
    """Digest of an anchor -> standardised score of the chosen response less that of the rejected one; newest last."""
    p: float = 1.0
    """Probability that a client whose scores are independent of the labels does as well (``sign_flip_test``)."""

    @property
    def anchors(self) -> int:
        """Number of anchors."""
        return len(self.differences)


@dataclass(frozen=True)
class QuarantineFinding:
    """Decision to change a client's state, and why."""

    useful: bool
    reason: str


def judge(record: ClientRecord, found: Mapping[str, QuarantineEvidence]) -> QuarantineFinding | None:
    """Decide from the evidence of every objective; ``None``: no change."""
    if not found:
        return None
    best = min(found, key=lambda name: found[name].p)
    results = ", ".join(f"{name!r}: p = {line.p:.3g} on {line.anchors} anchors" for name, line in sorted(found.items()))
    if record.state == "quarantined":
        passed = found[best].p <= USEFUL / len(found)
        return (
            QuarantineFinding(True, f"its scores rank the better responses higher again ({results})")
            if passed
            else None
        )
    failed = found[best].p > USELESS / len(found)
    if failed and any(line.anchors >= LEAST_ANCHORS for line in found.values()):
        return QuarantineFinding(
            False, f"in no region of inputs do its scores rank the better responses higher ({results})"
        )
    return None


@dataclass(frozen=True)
class QuarantineReview:
    """Outcome of a review at a fit."""

    changed: Mapping[str, QuarantineFinding]
    """Client -> decision, for those whose state changed."""
    doubted: Mapping[str, str]
    """Client -> why this fit gives it no weight."""


def _parse_evidence(value: bytes) -> QuarantineEvidence:
    return QuarantineEvidence.model_validate_json(value, extra="ignore")


class Quarantine:
    """Review of every client's usefulness at each fit."""

    def __init__(self, redis: Redis, registry: ClientRegistry, audit: AuditLog) -> None:
        self._redis = redis
        self._registry = registry
        self._audit = audit

    async def review(
        self,
        objective: Objective,
        inputs: Mapping[str, Float[ndarray, " features"]],
        scored: Sequence[AnchorScores],
    ) -> QuarantineReview:
        """Record the scores of the anchors in ``inputs``, embeddings by digest, and move clients that fail or pass."""
        place = {digest: vector.astype(np.float32) for digest, vector in inputs.items()}
        states = {record.name: record.state for record in await self._registry.all()}
        evidence = {
            line.client: await self._record(objective, line, place, anew=states.get(line.client) == "quarantined")
            for line in scored
            if not place.keys().isdisjoint(line.scores)
        }
        vectors = await self._vectors(objective, place, evidence)
        judged = await asyncio.to_thread(_judged, evidence, vectors)
        if judged:
            mapping: Any = {client: line.model_dump_json() for client, line in judged.items()}
            name = key("evidence", objective.name)
            await _EVIDENCE.write(self._redis, {name: "hash"}, lambda: self._redis.hset(name, mapping=mapping))
        changed: dict[str, QuarantineFinding] = {}
        for client in judged:
            try:
                finding = judge(await self._registry.get(client), await self._everywhere(client))
            except (NotFound, Conflict):
                continue  # removed meanwhile, or its record cannot be read
            if finding is not None:
                changed[client] = finding
                await self._move(client, finding)
        doubted = {
            client: f"in no region of inputs do its scores rank the better responses higher (p = {line.p:.3g} on "
            f"{line.anchors} anchors); it gets no weight until they do"
            for client, line in judged.items()
            if line.anchors >= LEAST_FOR_DOUBT and line.p > USELESS and client not in changed
        }
        return QuarantineReview(changed, doubted)

    async def _record(
        self, objective: Objective, scored: AnchorScores, inputs: Collection[str], *, anew: bool
    ) -> QuarantineEvidence:
        """Add a client's scores to its evidence, which starts ``anew`` for a quarantined one."""
        pairs = {digest: pair for digest, pair in scored.scores.items() if digest in inputs}
        raw = np.array(list(pairs.values()), dtype=float)
        units = fit_standardiser(raw)(raw)
        fresh = dict(zip(pairs, (units[:, 0] - units[:, 1]).tolist(), strict=True))
        known = None if anew else await self._read(objective.name, scored.client)
        before = known.differences if known is not None else {}
        kept = {**{digest: d for digest, d in before.items() if digest not in fresh}, **fresh}
        return QuarantineEvidence(differences=dict(list(kept.items())[-_MOST_ANCHORS:]))

    async def _vectors(
        self,
        objective: Objective,
        present: Mapping[str, Float[ndarray, " features"]],
        evidence: Mapping[str, QuarantineEvidence],
    ) -> dict[str, Float[ndarray, " features"]]:
        """Return and store the embeddings of all anchors in ``evidence``; drop those of another embedder's length."""
        name = key("judged", objective.name)
        size = len(next(iter(present.values())))
        stored: dict[bytes, bytes] = await _VECTORS.read(name, _VECTORS.fetch_hash(self._redis, name), {})
        known = await asyncio.to_thread(parse_vectors, _VECTORS, stored) | dict(present)
        wanted = {digest for line in evidence.values() for digest in line.differences}
        found = {digest: vector for digest, vector in known.items() if digest in wanted and len(vector) == size}
        mapping: Any = {digest: vector.tobytes() for digest, vector in found.items()}
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(name)
            if mapping:
                pipe.hset(name, mapping=mapping)
            await pipe.execute()
        return found

    async def _everywhere(self, client: str) -> dict[str, QuarantineEvidence]:
        """Read a client's evidence, by objective."""
        found = {name: await self._read(name, client) for name in await objective_names(self._redis)}
        return {name: evidence for name, evidence in found.items() if evidence is not None}

    async def _read(self, objective: str, client: str) -> QuarantineEvidence | None:
        """Read a client's evidence of one objective; ``None`` where there is none that can be read."""
        place = key("evidence", objective)
        value: Any = await _EVIDENCE.read(place, _EVIDENCE.fetch(self._redis, "HGET", place, client), None)
        return _EVIDENCE.parse(f"{place} {client}", value, _parse_evidence)

    async def _move(self, client: str, finding: QuarantineFinding) -> None:
        state = "probation" if finding.useful else "quarantined"
        reason = None if finding.useful else finding.reason
        await self._registry.update(client, lambda known: known.model_copy(update={"state": state, "reason": reason}))
        self._audit.record("quarantine", client, "router", state=state, reason=finding.reason)
        for name in await objective_names(self._redis):
            await self._redis.hdel(key("evidence", name), client)


def _judged(
    evidence: Mapping[str, QuarantineEvidence], vectors: Mapping[str, Float[ndarray, " features"]]
) -> dict[str, QuarantineEvidence]:
    """Test each client on its anchors that have an embedding."""
    order = list(vectors)
    if not order:
        return {}
    place = {digest: row for row, digest in enumerate(order)}
    cells = region_cells(np.stack([vectors[digest] for digest in order]).astype(float))
    judged = {}
    for client, line in evidence.items():
        kept = {digest: d for digest, d in line.differences.items() if digest in place}
        rows = [place[digest] for digest in kept]
        judged[client] = QuarantineEvidence(differences=kept, p=p_value(cells[rows], np.array(list(kept.values()))))
    return judged
