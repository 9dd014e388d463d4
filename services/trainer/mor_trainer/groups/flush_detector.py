"""Whether the queue server still has what it was given."""

from __future__ import annotations

from typing import Literal

from mor_core.streams import key
from redis.asyncio import Redis


class QueueMark:
    """A key that a flush removes, and the identity of the server process, which a restart changes.

    A restarted server has lost up to its last second even with an append-only file, so both count as a loss.
    """

    def __init__(self, redis: Redis, run: str) -> None:
        self._redis = redis
        self._key = key(run, "mark")
        self._server: str | None = None

    async def look(self) -> Literal["first", "same", "lost"]:
        """Compare with the last look; ``first`` for the first."""
        server = str((await self._redis.info("server"))["run_id"])
        fresh = bool(await self._redis.set(self._key, server, nx=True))
        before, self._server = self._server, server
        if before is None:
            return "first"
        return "lost" if fresh or server != before else "same"

    async def remove(self) -> None:
        """The run ends: leave nothing behind."""
        await self._redis.delete(self._key)
