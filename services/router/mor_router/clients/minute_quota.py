"""Counters of a minute in Redis, for all replicas together."""

from __future__ import annotations

from mor_core.stored import StoredEntries, is_no_counter
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mor_router.store import key

_WINDOW_S = 60
"""Seconds over which is counted; a counter ends with them."""
_MOST_COUNTED = 1 << 30
"""Largest count that can be genuine: more than a minute has room for."""
_QUOTAS = StoredEntries("quotas")


class MinuteQuota:
    """Counters that begin anew a minute after their first count."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(self, subject: tuple[str, ...], amount: int = 1) -> tuple[int, int]:
        """Add to the counter of ``subject``; return its count and the seconds that are left of its minute."""
        name = key("quota", *subject)
        count, left_s = await self._add(name, amount)
        if not 0 < count <= _MOST_COUNTED or not 0 <= left_s <= _WINDOW_S:
            _QUOTAS.refuse(name, "it is no counter that ends within a minute; it is begun anew")
            await self._redis.delete(name)
            count, left_s = await self._add(name, amount)
        return count, left_s

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
