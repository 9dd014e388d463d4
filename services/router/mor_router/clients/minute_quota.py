"""Counters of a minute in Redis, for all replicas together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mor_core.stored import StoredEntries
from mor_core.stored_counters import count_for
from mor_core.tasks import forget_failure
from redis.asyncio import Redis

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
            count, left_s, is_anew = await count_for(
                self._redis, name, joined.total, seconds=_WINDOW_S, most=_MOST_COUNTED
            )
            if is_anew:
                _QUOTAS.refuse(name, "it is no counter that ends within a minute; it is begun anew")
            return count, left_s
        finally:
            if self._last.get(name) is asyncio.current_task():
                del self._last[name]
