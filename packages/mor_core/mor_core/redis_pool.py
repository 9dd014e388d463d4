"""Pools of connections to the queue server that close what a burst opened and nothing needs any more.

Redis-py keeps every connection that it ever opened. A process that runs for months would so hold as many as its worst
moment needed, and the queue server those of all processes.
"""

from __future__ import annotations

import time
from typing import Any

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool

MOST_CONNECTIONS = 4096
"""Connections of a process to one server. Redis-py's own limit of 100 refuses what a step's calls need at once."""
_IDLE_S = 60.0
"""Seconds without use after which a connection is closed."""


class ShrinkingPool(ConnectionPool):
    """Pool that closes idle connections.

    It looks for them when a connection is returned. The one that was returned last is used first, so that those of a
    burst are never used again and come to their end.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._returned: dict[AbstractConnection, float] = {}
        self._looked = time.monotonic()

    async def release(self, connection: AbstractConnection) -> None:
        """Take a connection back."""
        self._returned[connection] = time.monotonic()
        await super().release(connection)
        if time.monotonic() - self._looked > _IDLE_S / 4:
            await self._close_idle()

    async def _close_idle(self) -> None:
        self._looked = now = time.monotonic()
        async with self._get_pool_lock():
            free = list(self._get_free_connections())
            idle = [one for one in free if now - self._returned.get(one, now) > _IDLE_S]
            self._available_connections = [one for one in free if one not in idle]
            for one in idle:
                del self._returned[one]
        for one in idle:
            await one.disconnect()


class ShrinkingSentinelPool(ShrinkingPool, SentinelConnectionPool):
    """The same for the server that Sentinels name."""
