"""Scores that clients gave to honeypots (anchors sent as live groups), by client, model version and gate version."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from mor_core.wire import ModelRef
from numpy import ndarray
from redis.asyncio import Redis

from mor_router.store import CLIENTS, key

_MOST_SCORES = 640
"""Scores kept per client and objective, the newest ones, so that the store stays bounded."""
_PRUNE_ABOVE = 1.25
"""Size of the store above which it is pruned between fits, relative to the size of a pruned one: a client that names a
new model version at each call has a new score for each honeypot."""


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
        async with self._redis.pipeline(transaction=False) as pipe:
            for score in scores:
                value = [score.chosen, score.rejected, score.at]
                pipe.hsetnx(key("live", objective), _field(score), json.dumps(value))
            for digest, vector in embeddings.items():
                pipe.hset(key("seen", objective), digest, vector.astype(np.float32).tobytes())
            pipe.hlen(key("live", objective))
            pipe.hlen(CLIENTS)
            *_, stored, clients = await pipe.execute()
        if stored > _PRUNE_ABOVE * _MOST_SCORES * max(1, clients):
            await self.prune(objective)

    async def all(self, objective: str) -> list[HoneypotScore]:
        """Return all scores for an objective, oldest first."""
        stored: Any = await self._redis.hgetall(key("live", objective))
        return await asyncio.to_thread(_sorted, stored)

    async def embeddings(self, objective: str) -> dict[str, Float[ndarray, " features"]]:
        """Return the embeddings of the anchors that were sent, by digest."""
        stored: Any = await self._redis.hgetall(key("seen", objective))
        return {digest.decode(): np.frombuffer(vector, np.float32) for digest, vector in stored.items()}

    async def prune(self, objective: str) -> None:
        """Delete the oldest scores over the bound, and embeddings that no score refers to."""
        count: Counter[str] = Counter()
        kept: set[str] = set()
        surplus = []
        for score in reversed(await self.all(objective)):
            count[score.client] += 1
            if count[score.client] > _MOST_SCORES:
                surplus.append(_field(score))
            else:
                kept.add(score.digest)
        embedded: Any = await self._redis.hkeys(key("seen", objective))
        unused = [digest for digest in embedded if digest.decode() not in kept]
        if surplus:
            await self._redis.hdel(key("live", objective), *surplus)
        if unused:
            await self._redis.hdel(key("seen", objective), *unused)


def scored_now(client: str, model: ModelRef, gate: int, digest: str, scores: tuple[float, float]) -> HoneypotScore:
    """Return a score with the present time; ``scores`` are those of (chosen, rejected)."""
    return HoneypotScore(client, model, gate, digest, *scores, time.time())


def _field(score: HoneypotScore) -> str:
    return json.dumps([score.client, score.model.name, score.model.version, score.gate, score.digest])


def _sorted(stored: Mapping[bytes, bytes]) -> list[HoneypotScore]:
    return sorted((_parse(field, value) for field, value in stored.items()), key=lambda score: score.at)


def _parse(field: bytes, value: bytes) -> HoneypotScore:
    client, name, version, gate, digest = json.loads(field)
    chosen, rejected, at = json.loads(value)
    return HoneypotScore(client, ModelRef(name=name, version=version), gate, digest, chosen, rejected, at)
