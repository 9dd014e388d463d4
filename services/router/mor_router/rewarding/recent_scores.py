"""Store of each client's latest raw scores, which standardise it where there is no fit yet."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from mor_core.wire import ModelRef
from redis.asyncio import Redis

from mor_router.mathematics.standardise import Standardiser, fit_standardiser
from mor_router.store import key

_PAIRS = 512
"""Latest pairs kept for each client: enough for a median, small enough to read for each batch."""
_TTL_S = 7 * 86400
"""Seconds after the last score for which the pairs are kept: a week, to cover pauses between runs."""
_PAIR = struct.Struct("<8sdd")
"""Tag of the model, and two raw scores."""


class RecentScores:
    """Standardisers for the cold start, from the latest raw scores of each client.

    A client has one list of a fixed length, whatever models it names: a client that names another one at each call
    pushes out its own pairs.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def standardiser(
        self, client: str, model: ModelRef, groups: Sequence[Sequence[float]], *, remember: bool
    ) -> Standardiser | None:
        """Fit on neighbouring pairs of ``groups`` and of earlier groups; ``None`` where no group has a pair."""
        name, tag = key("recent", client), _tag(model)
        pairs = [pair for group in groups for pair in itertools.pairwise(group)]
        stored: Any
        async with self._redis.pipeline(transaction=False) as pipe:
            if pairs and remember:
                pipe.lpush(name, *(_PAIR.pack(tag, *pair) for pair in pairs[-_PAIRS:]))
                pipe.ltrim(name, 0, _PAIRS - 1)
                pipe.expire(name, _TTL_S)
            pipe.lrange(name, 0, _PAIRS - 1)
            stored = (await pipe.execute())[-1]
        entries = [_PAIR.unpack(value) for value in stored if len(value) == _PAIR.size]
        known = [pair for found, *pair in entries if found == tag and np.isfinite(pair).all()] or pairs
        return fit_standardiser(np.array(known)) if known else None


def _tag(model: ModelRef) -> bytes:
    """Return eight bytes that identify a model."""
    return hashlib.blake2b(f"{model.name}\0{model.version}".encode(), digest_size=8).digest()
