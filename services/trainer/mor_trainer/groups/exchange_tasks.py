"""Background tasks of a group exchange: they outlast failures of the queue server, and end with the lease."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog
from mor_core.disk_full import is_disk_full, is_server_full
from mor_core.errors import StreamError, Superseded
from mor_core.failures import describe_failure
from mor_core.fence import Fence
from mor_core.tasks import is_cancelled, stop
from redis.exceptions import RedisError

_FULL_S = 10.0
"""Seconds for which a refused write tells that there is no room: several times the pause until it is repeated."""

Loop = Callable[[], Awaitable[None]]

log = structlog.get_logger(__name__)


class ExchangeTasks:
    """Background tasks of one run's exchange."""

    def __init__(
        self, run: str, fence: Fence, reclaim: Callable[[], Awaitable[None]], failed: Callable[[], None]
    ) -> None:
        """``reclaim`` makes this attempt the newest one on the queue server. ``failed`` is called when ``failure`` is
        set."""
        self._run = run
        self._fence = fence
        self._reclaim = reclaim
        self._failed = failed
        self._tasks: list[asyncio.Task[None]] = []
        self._full: tuple[float, str] | None = None
        """Monotonic time and reason of the last write for which the queue server or the folder of blobs had no room."""
        self.failure: Exception | None = None
        """Error that ended a task."""

    def start(self, loops: Mapping[str, Loop]) -> None:
        """Start a task for each loop, by its name."""
        self._tasks = [
            asyncio.create_task(self._persist(name, loop), name=f"{name} {self._run}") for name, loop in loops.items()
        ]

    async def stop(self) -> None:
        """Stop the tasks."""
        await stop(self._tasks)

    def no_room(self) -> str | None:
        """Return why the queue server or the folder of blobs takes nothing at present, with a remedy."""
        if self._full is None or time.monotonic() - self._full[0] > _FULL_S:
            return None
        return f"groups cannot be sent ({self._full[1]}); make room for the queue server or on MOR_BLOB_DIR's disk"

    async def _persist(self, name: str, loop: Loop) -> None:
        """Run ``loop`` until cancelled; when the queue server fails, run it again after a pause with jitter.

        It ends when the lease on the run is lost, which the training loop notices by itself.
        """
        while self._fence.lost() is None:
            try:
                await loop()
            except Superseded as error:
                await self._contest(error)
            except (RedisError, StreamError, OSError) as error:
                log.warning("the queue server failed", task=name, run=self._run, error=describe_failure(error))
                if is_server_full(error) or is_disk_full(error):
                    self._full = (time.monotonic(), describe_failure(error))
                await asyncio.sleep(random.uniform(0.2, 1.0))  # jitter: all loops fail at the same moment
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError):
                    if is_cancelled():
                        raise
                    error = RuntimeError(f"the task {name!r} of the group exchange was cancelled by a library")
                self.failure = error
                self._failed()
                raise error

    async def _contest(self, error: Superseded) -> None:
        """Have run control decide whether this attempt is superseded, as the queue server says."""
        if self._fence.lost() is None and await self._fence.confirm():
            log.warning("the queue server names another attempt than run control; it is put right", run=self._run)
            with contextlib.suppress(RedisError, StreamError, OSError):  # the next refusal contests it again
                await self._reclaim()
        else:
            log.warning("the attempt is superseded", run=self._run, reason=str(error))
        await asyncio.sleep(random.uniform(0.2, 1.0))
