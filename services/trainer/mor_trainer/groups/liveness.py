"""A run's presence on the queue server: announced to the stages, cleaned of what an earlier attempt left, and put back
when the server lost its content."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mor_core.streams import announce, withdraw
from redis.asyncio import Redis

from mor_trainer.groups.flush_detector import QueueMark
from mor_trainer.groups.streams import GroupStreams

_ANNOUNCE_S = 5.0


class Presence:
    """``lost`` is called when the server was flushed or restarted, after the streams were made anew."""

    def __init__(self, redis: Redis, run: str, model: str, contents: GroupStreams, lost: Callable[[], None]) -> None:
        self._redis = redis
        self._run = run
        self._model = model
        self._contents = contents
        self._lost = lost
        self._mark = QueueMark(redis, run)
        self.cleared = asyncio.Event()
        """Set once nothing of an attempt that died is in the streams."""

    async def announce(self) -> None:
        """Announce the run again and again, for ever."""
        while True:
            await announce(self._redis, self._run, self._model)
            await asyncio.sleep(_ANNOUNCE_S)

    async def look(self) -> None:
        """Look whether the server still has what was put there."""
        match await self._mark.look():
            case "first":
                await self._contents.clear()
                self.cleared.set()
            case "lost":
                await self._contents.clear()
                await announce(self._redis, self._run, self._model)
                self._lost()

    async def withdraw(self) -> None:
        """The run does not go on here."""
        await withdraw(self._redis, self._run)
        await self._contents.clear()
        await self._mark.remove()
