"""Detection of a queue server that has lost its content."""

from __future__ import annotations

from typing import Literal

from mor_core.redis_users import MARK
from mor_core.stored import LEFTOVER_S
from mor_core.streams import key
from redis.asyncio import Redis


class FlushDetector:
    """A key that a flush removes, and the identity of the server process, which a restart changes.

    A server that restarts has lost up to its last second even with an append-only file, so both count as a loss.
    """

    def __init__(self, redis: Redis, run: str) -> None:
        self._redis = redis
        self._key = key(run, MARK)
        self._server: str | None = None

    async def check(self) -> Literal["first", "same", "lost"]:
        """Compare the server with the last check; ``first`` on the first one."""
        server = str((await self._redis.info("server"))["run_id"])
        created = bool(await self._redis.set(self._key, server, nx=True))
        await self._redis.expire(self._key, LEFTOVER_S)
        before, self._server = self._server, server
        if before is None:
            return "first"
        return "lost" if created or server != before else "same"

    async def remove(self) -> None:
        """Remove the key when the run ends."""
        await self._redis.delete(self._key)
