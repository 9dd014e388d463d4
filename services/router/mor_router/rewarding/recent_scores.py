"""Store of each client's latest raw scores, which standardise it where there is no fit yet."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from mor_core.errors import Invalid
from mor_core.stored import StoredEntries
from mor_core.wire import LARGEST_SCORE, ModelRef
from redis.asyncio import Redis

from mor_router.mathematics.standardise import Standardiser, fit_standardiser
from mor_router.store import key

_PAIRS = 512
"""Latest pairs kept for each client: enough for a median, small enough to read for each batch."""
_TTL_S = 7 * 86400
"""Seconds after the last score for which the pairs are kept: a week, to cover pauses between runs."""
_PAIR = struct.Struct("<8sdd")
"""Tag of the model, and two raw scores."""
_RECENT = StoredEntries("recent_scores")


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

        async def exchange() -> Any:
            async with self._redis.pipeline(transaction=False) as pipe:
                if pairs and remember:
                    pipe.lpush(name, *(_PAIR.pack(tag, *pair) for pair in pairs[-_PAIRS:]))
                    pipe.ltrim(name, 0, _PAIRS - 1)
                    pipe.expire(name, _TTL_S)
                pipe.lrange(name, 0, _PAIRS - 1)
                return (await pipe.execute())[-1]

        entries = _RECENT.parse_list(await _RECENT.write(self._redis, [name], exchange), _parse)
        known = [pair for found, pair in entries if found == tag] or pairs
        return fit_standardiser(np.array(known)) if known else None


def _tag(model: ModelRef) -> bytes:
    """Return eight bytes that identify a model."""
    return hashlib.blake2b(f"{model.name}\0{model.version}".encode(), digest_size=8).digest()


def _parse(value: bytes) -> tuple[bytes, tuple[float, float]]:
    """Parse the tag of a model and two neighbouring scores.

    Raises:
        Exception: the value does not hold two scores that a client may give.
    """
    tag, first, second = _PAIR.unpack(value)
    if not max(abs(first), abs(second)) <= LARGEST_SCORE:  # so that NaN is refused too
        raise Invalid(f"a score is not within ±{LARGEST_SCORE:g}")
    return tag, (first, second)
