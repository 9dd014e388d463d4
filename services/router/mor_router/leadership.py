"""Leader election: work that one replica does at a time, the holder of a lock in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable

import structlog
from mor_core.endless_keys import LeaseKey
from mor_core.failures import describe_failure
from mor_core.metrics import TASK_RESTARTS
from mor_core.stored import StoredEntries
from mor_core.tasks import stop
from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.exceptions import LockError, RedisError

from mor_router.store import key

_LOCKS = StoredEntries("leader")

log = structlog.get_logger(__name__)


class Leadership:
    """Lock ``name``, which outlives a holder that crashed by ``lease_s`` seconds at most.

    The fractions of the lease: another replica tries to acquire the lock about every 0.3 of it; the holder renews it at
    each fifth and stops its work after two thirds without a renewal, so that it has ended before the lock does.
    """

    def __init__(self, redis: Redis, name: str, lease_s: float = 15.0) -> None:
        self._redis = redis
        self._name = name
        self._lease_s = lease_s
        self._key = LeaseKey(redis, key("leader", name), lease_s)

    async def while_leading(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work`` whenever this replica leads, until cancelled.

        When the lock is lost, the work is cancelled before another replica can acquire it. Work that fails is logged
        and started again at the next acquisition.
        """
        while True:
            lock = self._redis.lock(key("leader", self._name), timeout=self._lease_s, blocking=False)
            with contextlib.suppress(RedisError):  # includes LockError: the lock was lost meanwhile
                if await lock.acquire():
                    await self._lead(lock, work)
                else:
                    await self._break_foreign_lock()
            await asyncio.sleep(random.uniform(0.2, 0.4) * self._lease_s)

    async def _break_foreign_lock(self) -> None:
        """Delete a lock that no replica holds: each replica's lock ends within its lease, this one does not."""
        if await self._key.delete_unheld():
            _LOCKS.refuse(self._name, "the lock does not end within a lease; it is deleted")

    async def _lead(self, lock: Lock, work: Callable[[], Awaitable[None]]) -> None:
        log.info("leading", work=self._name)
        task = asyncio.ensure_future(work())
        try:
            await self._renew(lock, task)
        finally:
            (failure,) = await stop([task])
        if failure is not None:
            log.error("the leader's work failed and starts again", work=self._name, exc_info=failure)
            TASK_RESTARTS.labels(f"leader {self._name}").inc()
        await lock.release()  # not reached when the replica is stopped: the lock then expires, and the stop is quick

    async def _renew(self, lock: Lock, task: asyncio.Task[None]) -> None:
        confirmed = time.monotonic()
        while not task.done() and time.monotonic() - confirmed < 2 / 3 * self._lease_s:
            await asyncio.wait([task], timeout=self._lease_s / 5)
            try:
                async with asyncio.timeout(self._lease_s / 5):
                    await lock.reacquire()
                confirmed = time.monotonic()
            except LockError:
                log.warning("another replica leads", work=self._name)
                return
            except (RedisError, TimeoutError) as error:
                log.warning("the lock could not be renewed", work=self._name, error=describe_failure(error))
