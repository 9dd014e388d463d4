"""What clients said of anchors in the disguise of live groups, by client, model version and gate version."""

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

from mor_router.store import OBJECTIVES, key

_MOST_ANSWERS = 640
"""Of one client for one objective; the newest are kept."""


class LiveAnswer(NamedTuple):
    """One client's raw scores of one anchor."""

    client: str
    model: ModelRef
    gate: int
    """Gate version that was in force."""
    digest: str
    """Of the anchor."""
    chosen: float
    rejected: float
    at: float
    """Unix time, seconds."""

    @property
    def difference(self) -> float:
        return self.chosen - self.rejected


class LiveAnswers:
    """The answers in the store. An anchor that comes again under the same gate version counts once, as answered first:
    what a client says of a question that it has seen is worth less."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def note(
        self, objective: str, answers: Sequence[LiveAnswer], vectors: Mapping[str, Float[ndarray, " features"]]
    ) -> None:
        """Keep ``answers``, and the embeddings of their anchors by digest."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for answer in answers:
                value = [answer.chosen, answer.rejected, answer.at]
                pipe.hsetnx(key("live", objective), _field(answer), json.dumps(value))
            for digest, vector in vectors.items():
                pipe.hset(key("seen", objective), digest, vector.astype(np.float32).tobytes())
            await pipe.execute()

    async def all(self, objective: str) -> list[LiveAnswer]:
        """Oldest first."""
        stored: Any = await self._redis.hgetall(key("live", objective))
        return await asyncio.to_thread(_sorted, stored)

    async def vectors(self, objective: str) -> dict[str, Float[ndarray, " features"]]:
        """Embeddings of the anchors that were asked, by digest."""
        stored: Any = await self._redis.hgetall(key("seen", objective))
        return {digest.decode(): np.frombuffer(vector, np.float32) for digest, vector in stored.items()}

    async def prune(self, objective: str) -> None:
        """Drop what is beyond the bound, oldest first, and embeddings that nothing refers to."""
        count: Counter[str] = Counter()
        kept: set[str] = set()
        stale = []
        for answer in reversed(await self.all(objective)):
            count[answer.client] += 1
            if count[answer.client] > _MOST_ANSWERS:
                stale.append(_field(answer))
            else:
                kept.add(answer.digest)
        seen: Any = await self._redis.hkeys(key("seen", objective))
        forgotten = [digest for digest in seen if digest.decode() not in kept]
        if stale:
            await self._redis.hdel(key("live", objective), *stale)
        if forgotten:
            await self._redis.hdel(key("seen", objective), *forgotten)

    async def forget(self, client: str) -> None:
        """Drop what a client said, for all objectives."""
        names: Any = await self._redis.hkeys(OBJECTIVES)
        for name in names:
            objective = name.decode()
            fields = [_field(answer) for answer in await self.all(objective) if answer.client == client]
            if fields:
                await self._redis.hdel(key("live", objective), *fields)


def answered(client: str, model: ModelRef, gate: int, digest: str, scores: tuple[float, float]) -> LiveAnswer:
    """An answer of now; ``scores`` of (chosen, rejected)."""
    return LiveAnswer(client, model, gate, digest, *scores, time.time())


def _field(answer: LiveAnswer) -> str:
    return json.dumps([answer.client, answer.model.name, answer.model.version, answer.gate, answer.digest])


def _sorted(stored: Mapping[bytes, bytes]) -> list[LiveAnswer]:
    return sorted((_answer(field, value) for field, value in stored.items()), key=lambda answer: answer.at)


def _answer(field: bytes, value: bytes) -> LiveAnswer:
    client, name, version, gate, digest = json.loads(field)
    chosen, rejected, at = json.loads(value)
    return LiveAnswer(client, ModelRef(name=name, version=version), gate, digest, chosen, rejected, at)
