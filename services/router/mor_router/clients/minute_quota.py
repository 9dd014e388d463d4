"""Counters of a minute in Redis, for all replicas together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mor_core.stored import StoredEntries, is_no_counter
from mor_core.tasks import forget_failure
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mor_router.store import key

_WINDOW_S = 60
"""Seconds over which is counted; a counter ends with them."""
_MOST_COUNTED = 1 << 30
"""Largest count that can be genuine: more than a minute has room for."""
_QUOTAS = StoredEntries("quotas")


@dataclass(eq=False)
class _Sum:
    """Amounts of several callers that are counted by one command."""

    total: int = 0
    counted: asyncio.Task[tuple[int, int]] = field(init=False)


class MinuteQuota:
    """Counters that begin anew a minute after their first count.

    Amounts for one subject that come while an earlier one is being counted are counted together: a trainer's hundreds
    of simultaneous calls would take as many connections to Redis as there are, and fail for want of more.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._open: dict[str, _Sum] = {}
        """Counter -> the amounts that will be counted next."""
        self._last: dict[str, asyncio.Task[tuple[int, int]]] = {}
        """Counter -> its latest count, until that is done."""

    async def add(self, subject: tuple[str, ...], amount: int = 1) -> tuple[int, int]:
        """Add to the counter of ``subject``; return its count and the seconds that are left of its minute."""
        name = key("quota", *subject)
        if (joined := self._open.get(name)) is None:
            joined = self._open[name] = _Sum()
            joined.counted = asyncio.create_task(self._count(name, joined, self._last.get(name)))
            joined.counted.add_done_callback(forget_failure)
            self._last[name] = joined.counted
        joined.total += amount
        before = joined.total
        count, left_s = await asyncio.shield(joined.counted)
        return count - joined.total + before, left_s

    async def _count(self, name: str, joined: _Sum, last: asyncio.Task[tuple[int, int]] | None) -> tuple[int, int]:
        """Count the amounts that have joined by the time at which the count before is done."""
        try:
            try:
                if last is not None:
                    await asyncio.wait([last])
            finally:
                del self._open[name]
            count, left_s = await self._add(name, joined.total)
            if not 0 < count <= _MOST_COUNTED or not 0 <= left_s <= _WINDOW_S:
                _QUOTAS.refuse(name, "it is no counter that ends within a minute; it is begun anew")
                await self._redis.delete(name)
                count, left_s = await self._add(name, joined.total)
            return count, left_s
        finally:
            if self._last.get(name) is asyncio.current_task():
                del self._last[name]

    async def _add(self, name: str, amount: int) -> tuple[int, int]:
        """Return the count and the seconds that are left; (0, 0) where the key is no counter."""
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(name, 0, ex=_WINDOW_S, nx=True)
                pipe.incrby(name, amount)
                pipe.ttl(name)
                _, count, left_s = await pipe.execute()
        except ResponseError as error:
            if not is_no_counter(error):
                raise
            return 0, 0
        return int(count), int(left_s)
