"""Liveness of a run on the queue server: announcement to the stages, clean-up, and recovery when content is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mor_core.fence import ATTEMPT, Fence
from mor_core.run_announcements import sweep, withdraw
from mor_core.stored import LEFTOVER_S
from mor_core.streams import key
from redis.asyncio import Redis

from mor_trainer.groups.flush_detector import FlushDetector
from mor_trainer.groups.group_streams import GroupStreams

_ANNOUNCE_S = 5.0
"""Seconds between announcements; stages forget a run after a minute without one, so several may fail."""


class Liveness:
    """Announcement of a run to the stages, renewed until it is withdrawn.

    ``on_loss`` is called when the server was flushed or restarted, after the streams are empty and the run is
    announced again.
    """

    def __init__(
        self,
        redis: Redis,
        fence: Fence,
        announce: Callable[[], Awaitable[None]],
        streams: GroupStreams,
        on_loss: Callable[[], None],
    ) -> None:
        """``announce`` writes one announcement of the run."""
        self._redis = redis
        self._fence = fence
        self._announce = announce
        self._streams = streams
        self._on_loss = on_loss
        self._flush_detector = FlushDetector(redis, fence)
        self._lost = False
        """True from a loss until the recovery from it is complete: the server may fail in the middle of it."""
        self.cleared = asyncio.Event()
        """Set once the streams hold nothing of an earlier attempt."""

    async def announce(self) -> None:
        """Announce the run at intervals until cancelled."""
        while True:
            await self._announce()
            await asyncio.sleep(_ANNOUNCE_S)

    async def check(self) -> None:
        """Check that the server still has its content: empty the streams at first, recover after a loss."""
        self._lost |= await self._flush_detector.check() == "lost"
        if self.cleared.is_set() and not self._lost:
            return
        await self._streams.clear()
        if not self.cleared.is_set():
            self.cleared.set()
            await sweep(self._redis)
        if self._lost:
            await self._announce()
            self._on_loss()
            self._lost = False

    async def withdraw(self) -> None:
        """Withdraw the announcement and leave nothing on the server: the run does not continue here.

        Raises:
            Superseded: a later attempt at the run has begun.
        """
        await withdraw(self._redis, self._fence.run, self._fence)
        await self._streams.clear()
        await self._flush_detector.remove()

    async def reclaim(self) -> None:
        """Make this attempt the newest one on the server, whatever number is there: run control has confirmed it.

        The number is too high where somebody forged it, or where run control was restored from a backup.
        """
        await self._redis.set(key(self._fence.run, ATTEMPT), self._fence.attempt, ex=LEFTOVER_S)
        await withdraw(self._redis, self._fence.run)
        await self._announce()
