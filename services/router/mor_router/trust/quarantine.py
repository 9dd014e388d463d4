"""Quarantine: a client that is useless everywhere is not asked any more; one that has become useful comes back.

Before that, while there are too few anchors to be sure, such a client gets no weight.

What each client said of the newest anchors is kept beyond their replacement, so that fits on fresh anchors add up.
A quarantined client goes on scoring the anchors at each fit and is judged by each alone: what it said before does not
count against it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from mor_core.errors import NotFound
from mor_core.wire import Wire
from numpy import ndarray
from redis.asyncio import Redis

from mor_router.audit import AuditLog
from mor_router.clients.registry import ClientRecord, ClientRegistry
from mor_router.mathematics.sign_flip_test import LEAST_ANCHORS, LEAST_FOR_DOUBT, USEFUL, USELESS, p_value, regions
from mor_router.mathematics.standardise import fit_standardiser
from mor_router.objectives.anchor_scores import AnchorScores
from mor_router.objectives.objective_store import Objective
from mor_router.store import OBJECTIVES, key

_MOST_ANCHORS = 1280


class Evidence(Wire):
    """What is known of a client's use for one objective."""

    differences: dict[str, float]
    """Digest of an anchor -> standardised score of the chosen response less that of the rejected one; newest last."""
    p: float = 1.0
    """Probability of a client that knows nothing to do as well."""

    @property
    def anchors(self) -> int:
        return len(self.differences)


@dataclass(frozen=True)
class Finding:
    """Why a client changes its state."""

    useful: bool
    reason: str


def judge(record: ClientRecord, found: Mapping[str, Evidence]) -> Finding | None:
    """What follows from the evidence of every objective; ``None``: nothing yet."""
    if not found:
        return None
    best = min(found, key=lambda name: found[name].p)
    told = ", ".join(f"{name!r}: p = {line.p:.3g} on {line.anchors} anchors" for name, line in sorted(found.items()))
    if record.state == "quarantined":
        passed = found[best].p <= USEFUL / len(found)
        return Finding(True, f"its scores tell the better answers again ({told})") if passed else None
    failed = found[best].p > USELESS / len(found)
    if failed and any(line.anchors >= LEAST_ANCHORS for line in found.values()):
        return Finding(False, f"in no region of inputs do its scores tell the better answers ({told})")
    return None


@dataclass(frozen=True)
class Review:
    changed: Mapping[str, Finding]
    """Those whose state changed."""
    doubted: Mapping[str, str]
    """Client -> why the fit at hand gives it no weight."""


class Quarantine:
    def __init__(self, redis: Redis, registry: ClientRegistry, audit: AuditLog) -> None:
        self._redis = redis
        self._registry = registry
        self._audit = audit

    async def review(
        self,
        objective: Objective,
        inputs: Mapping[str, Float[ndarray, " features"]],
        scored: Sequence[AnchorScores],
    ) -> Review:
        """Note what the clients said of the anchors in ``inputs``, embeddings by digest, and change the state of those
        who fail or pass; who, and why."""
        place = {digest: vector.astype(np.float32) for digest, vector in inputs.items()}
        states = {record.name: record.state for record in await self._registry.all()}
        evidence = {
            line.client: await self._noted(objective, line, place, anew=states.get(line.client) == "quarantined")
            for line in scored
            if not place.keys().isdisjoint(line.scores)
        }
        vectors = await self._vectors(objective, place, evidence)
        judged = await asyncio.to_thread(_judged, evidence, vectors)
        if judged:
            mapping: Any = {client: line.model_dump_json() for client, line in judged.items()}
            await self._redis.hset(key("evidence", objective.name), mapping=mapping)
        changed: dict[str, Finding] = {}
        for client in judged:
            try:
                finding = judge(await self._registry.get(client), await self._everywhere(client))
            except NotFound:
                continue  # removed meanwhile
            if finding is not None:
                changed[client] = finding
                await self._move(client, finding)
        doubted = {
            client: f"in no region of inputs do its scores tell the better answers (p = {line.p:.3g} on {line.anchors} "
            f"anchors); it gets no weight until they do"
            for client, line in judged.items()
            if line.anchors >= LEAST_FOR_DOUBT and line.p > USELESS and client not in changed
        }
        return Review(changed, doubted)

    async def _noted(
        self, objective: Objective, scored: AnchorScores, inputs: Collection[str], *, anew: bool
    ) -> Evidence:
        pairs = {digest: pair for digest, pair in scored.scores.items() if digest in inputs}
        raw = np.array(list(pairs.values()), dtype=float)
        units = fit_standardiser(raw)(raw)
        said = dict(zip(pairs, (units[:, 0] - units[:, 1]).tolist(), strict=True))
        value = None if anew else await self._redis.hget(key("evidence", objective.name), scored.client)
        before = Evidence.model_validate_json(value).differences if value is not None else {}
        kept = {**{digest: d for digest, d in before.items() if digest not in said}, **said}
        return Evidence(differences=dict(list(kept.items())[-_MOST_ANCHORS:]))

    async def _vectors(
        self,
        objective: Objective,
        present: Mapping[str, Float[ndarray, " features"]],
        evidence: Mapping[str, Evidence],
    ) -> dict[str, Float[ndarray, " features"]]:
        """Embeddings of all anchors in ``evidence``; those of another embedder's length are forgotten."""
        name = key("judged", objective.name)
        stored: Any = await self._redis.hgetall(name)
        size = len(next(iter(present.values())))
        known = {digest.decode(): np.frombuffer(vector, np.float32) for digest, vector in stored.items()}
        known |= present
        wanted = {digest for line in evidence.values() for digest in line.differences}
        found = {digest: vector for digest, vector in known.items() if digest in wanted and len(vector) == size}
        mapping: Any = {digest: vector.tobytes() for digest, vector in found.items()}
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(name)
            if mapping:
                pipe.hset(name, mapping=mapping)
            await pipe.execute()
        return found

    async def _everywhere(self, client: str) -> dict[str, Evidence]:
        found = {}
        names: Any = await self._redis.hkeys(OBJECTIVES)
        for name in names:
            value = await self._redis.hget(key("evidence", name.decode()), client)
            if value is not None:
                found[name.decode()] = Evidence.model_validate_json(value)
        return found

    async def _move(self, client: str, finding: Finding) -> None:
        state = "probation" if finding.useful else "quarantined"
        reason = None if finding.useful else finding.reason
        await self._registry.update(client, lambda known: known.model_copy(update={"state": state, "reason": reason}))
        self._audit.record("quarantine", client, "router", state=state, reason=finding.reason)
        names: Any = await self._redis.hkeys(OBJECTIVES)
        for name in names:
            await self._redis.hdel(key("evidence", name.decode()), client)


def _judged(
    evidence: Mapping[str, Evidence], vectors: Mapping[str, Float[ndarray, " features"]]
) -> dict[str, Evidence]:
    order = list(vectors)
    if not order:
        return {}
    place = {digest: row for row, digest in enumerate(order)}
    found = regions(np.stack([vectors[digest] for digest in order]).astype(float))
    judged = {}
    for client, line in evidence.items():
        said = {digest: d for digest, d in line.differences.items() if digest in place}
        rows = [place[digest] for digest in said]
        judged[client] = Evidence(differences=said, p=p_value(found[rows], np.array(list(said.values()))))
    return judged
