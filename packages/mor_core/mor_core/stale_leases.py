"""Leases on stream entries that the queue server's clock does not end, because somebody set it back.

The server counts the idle time of an entry from its last delivery, by its system clock. After a jump back by an hour,
the entries of a consumer that died before the jump stay with it for an hour; at a fail-over the new server's clock may
be behind as well. Their idle time is then 0 at every look, which no living consumer's is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis

_LEAST_LOOKS = 3
"""Looks at which the idle time must be 0: a lease that was renewed in the same millisecond has it at one."""
_MOST_ENTRIES = 256
"""Entries of one look, oldest first; the next ones are found once these are settled."""

log = structlog.get_logger(__name__)


@dataclass
class _Suspect:
    since: float
    """Monotonic time of the first look."""
    looks: int = 0


class StaleLeases:
    """Entries of one consumer group whose idle time is 0 at every look."""

    def __init__(self, redis: Redis, key: str, stage: str, lease_s: float) -> None:
        self._redis, self._key, self._stage, self._lease_s = redis, key, stage, lease_s
        self._suspects: dict[bytes, _Suspect] = {}

    async def end(self, consumer: str) -> None:
        """Let anyone claim the entries that were idle for 0 ms for longer than a lease, by this process's own clock.

        ``consumer`` is the caller's name in the group. Call it after reads that found nothing.

        Raises:
            RedisError: the server failed.
        """
        pending: Any = await self._redis.xpending_range(self._key, self._stage, min="-", max="+", count=_MOST_ENTRIES)
        now = time.monotonic()
        self._suspects = {
            row["message_id"]: self._suspects.get(row["message_id"], _Suspect(now))
            for row in pending
            if row["time_since_delivered"] == 0
        }
        for suspect in self._suspects.values():
            suspect.looks += 1
        ended: list[Any] = [
            entry
            for entry, suspect in self._suspects.items()
            if suspect.looks >= _LEAST_LOOKS and now - suspect.since > self._lease_s
        ]
        if ended:
            log.warning(
                "the queue server's clock was set back; the entries of silent consumers are taken over all the same",
                stream=self._key,
                entries=len(ended),
            )
            idle_ms = max(1, round(self._lease_s * 1000))
            await self._redis.xclaim(self._key, self._stage, consumer, 0, ended, idle=idle_ms, justid=True)
