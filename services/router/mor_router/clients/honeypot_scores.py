"""Scores that clients gave to honeypots (anchors sent as live groups), by client, model version and gate version."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from mor_core.errors import Invalid
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stored import StoredEntries
from mor_core.wire import Count, Finite, ModelRef
from numpy import ndarray
from pydantic import TypeAdapter
from redis.asyncio import Redis

from mor_router.store import CLIENTS, key

_MOST_SCORES = 640
"""Scores kept per client and objective, the newest ones, so that the store stays bounded."""
_PRUNE_ABOVE = 1.25
"""Size of the store above which it is pruned between fits, relative to the size of a pruned one: a client that names a
new model version at each call has a new score for each honeypot."""


_FIELD: TypeAdapter[tuple[str, str, str, int, str]] = TypeAdapter(tuple[str, str, str, Count, str])
_VALUE: TypeAdapter[tuple[float, float, float]] = TypeAdapter(tuple[Finite, Finite, Finite])
_SCORES = StoredEntries("honeypot_scores")
_VECTORS = StoredEntries("honeypot_embeddings")


class HoneypotScore(NamedTuple):
    """One client's raw scores for one anchor."""

    client: str
    model: ModelRef
    gate: int
    """Gate version that was active."""
    digest: str
    """Digest of the anchor."""
    chosen: float
    rejected: float
    at: float
    """Unix time, seconds."""

    @property
    def difference(self) -> float:
        return self.chosen - self.rejected


class HoneypotScores:
    """Store of the honeypot scores.

    Of an anchor that is sent again under the same gate version the first scores count: a client may have recognised it
    the second time.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(
        self, objective: str, scores: Sequence[HoneypotScore], embeddings: Mapping[str, Float[ndarray, " features"]]
    ) -> None:
        """Store ``scores``, and the embeddings of their anchors by digest."""
        live, seen = key("live", objective), key("seen", objective)

        async def write() -> tuple[int, int]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for score in scores:
                    value = [score.chosen, score.rejected, score.at]
                    pipe.hsetnx(live, _field(score), json.dumps(value))
                for digest, vector in embeddings.items():
                    pipe.hset(seen, digest, vector.astype(np.float32).tobytes())
                pipe.hlen(live)
                pipe.hlen(CLIENTS)
                *_, stored, clients = await pipe.execute()
            return int(stored), int(clients)

        stored, clients = await _SCORES.write(self._redis, {live: "hash", seen: "hash"}, write)
        if stored > _PRUNE_ABOVE * _MOST_SCORES * max(1, clients):
            await self.prune(objective)

    async def all(self, objective: str) -> list[HoneypotScore]:
        """Return all scores for an objective, oldest first."""
        place = key("live", objective)
        stored: dict[bytes, bytes] = await _SCORES.read(place, _SCORES.fetch_hash(self._redis, place), {})
        return await asyncio.to_thread(_sorted, stored)

    async def embeddings(self, objective: str) -> dict[str, Float[ndarray, " features"]]:
        """Return the embeddings of the anchors that were sent, by digest."""
        place = key("seen", objective)
        stored: dict[bytes, bytes] = await _VECTORS.read(place, _VECTORS.fetch_hash(self._redis, place), {})
        return await asyncio.to_thread(parse_vectors, _VECTORS, stored)

    async def prune(self, objective: str) -> None:
        """Delete the oldest scores over the bound, and embeddings that no score refers to."""
        place = key("seen", objective)
        # Before the scores, which are stored first: an embedding of a score that comes now is not among them.
        embedded: list[bytes] = await _VECTORS.read(place, _VECTORS.fetch(self._redis, "HKEYS", place), [])
        count: Counter[str] = Counter()
        kept: set[str] = set()
        surplus = []
        for score in reversed(await self.all(objective)):
            count[score.client] += 1
            if count[score.client] > _MOST_SCORES:
                surplus.append(_field(score))
            else:
                kept.add(score.digest)
        used = {digest.encode() for digest in kept}
        unused = [digest for digest in embedded if digest not in used]
        if surplus:
            await self._redis.hdel(key("live", objective), *surplus)
        if unused:
            await self._redis.hdel(place, *unused)


def scored_now(client: str, model: ModelRef, gate: int, digest: str, scores: tuple[float, float]) -> HoneypotScore:
    """Return a score with the present time; ``scores`` are those of (chosen, rejected)."""
    return HoneypotScore(client, model, gate, digest, *scores, SERVER_CLOCK.now())


def _field(score: HoneypotScore) -> str:
    return json.dumps([score.client, score.model.name, score.model.version, score.gate, score.digest])


def parse_vectors(store: StoredEntries, stored: Mapping[bytes, bytes]) -> dict[str, Float[ndarray, " features"]]:
    """Parse embeddings by digest; those of an embedder before the present one may have another length."""
    pairs = store.parse_all(stored, lambda digest, vector: (digest.decode(), _vector(vector)))
    return dict(pairs.values())


def _vector(content: bytes) -> Float[ndarray, " features"]:
    """Parse an embedding.

    Raises:
        ValueError: the bytes are no whole numbers of four bytes.
        Invalid: a number is not finite, or there is none.
    """
    vector = np.frombuffer(content, np.float32)
    if not vector.size or not np.isfinite(vector).all():
        raise Invalid("an embedding is empty or has a number that is not finite")
    return vector


def _sorted(stored: Mapping[bytes, bytes]) -> list[HoneypotScore]:
    return sorted(_SCORES.parse_all(stored, _parse).values(), key=lambda score: score.at)


def _parse(field: bytes, value: bytes) -> HoneypotScore:
    client, name, version, gate, digest = _FIELD.validate_json(field)
    chosen, rejected, at = _VALUE.validate_json(value)
    return HoneypotScore(client, ModelRef(name=name, version=version), gate, digest, chosen, rejected, at)
