"""Store of each client's latest raw scores, which standardise it where there is no fit yet."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from mor_core.errors import Invalid
from mor_core.stored import StoredEntries
from mor_core.wire import LARGEST_SCORE, ModelRef
from numpy import ndarray
from redis.asyncio import Redis

from mor_router.mathematics.standardise import Standardiser, fit_standardiser
from mor_router.store import key

_CALLS = 32
"""Latest calls of which a client's pairs are kept, one entry for each: few entries are read faster than many."""
_PAIRS = 64
"""Most pairs kept of one call: with those of the other calls enough for a median, small enough to read each time."""
_TTL_S = 7 * 86400
"""Seconds after the last score for which the pairs are kept: a week, to cover pauses between runs."""
_PAIR = np.dtype([("model", "<u8"), ("scores", "<f8", 2)])
"""Tag of the model, and two raw scores."""
_RECENT = StoredEntries("recent_scores", largest=_PAIRS * _PAIR.itemsize)


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
        kept = pairs[:: max(1, -(-len(pairs) // _PAIRS))]
        entry = np.array([(tag, pair) for pair in kept], _PAIR).tobytes()

        async def exchange() -> Any:
            async with self._redis.pipeline(transaction=False) as pipe:
                if pairs and remember:
                    pipe.lpush(name, entry)
                    pipe.ltrim(name, 0, _CALLS - 1)
                    pipe.expire(name, _TTL_S)
                await pipe.execute()
            return await _RECENT.fetch(self._redis, "LRANGE", name, 0, _CALLS - 1)

        calls = _RECENT.parse_list(await _RECENT.write(self._redis, {name: "list"}, exchange), _parse)
        stored = np.concatenate([np.empty(0, _PAIR), *calls])
        known = stored["scores"][stored["model"] == tag]
        if not len(known):
            known = np.array(pairs)
        return fit_standardiser(known) if len(known) else None


def _tag(model: ModelRef) -> int:
    """Return a number of 64 bits that identifies a model."""
    digest = hashlib.blake2b(f"{model.name}\0{model.version}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _parse(value: bytes) -> ndarray:
    """Parse the pairs of one call.

    Raises:
        Exception: the value does not hold pairs of scores that a client may give.
    """
    pairs = np.frombuffer(value, _PAIR)
    if not np.all(np.abs(pairs["scores"]) <= LARGEST_SCORE):  # NaN is refused too
        raise Invalid(f"a score is not within ±{LARGEST_SCORE:g}")
    return pairs
