"""Base of the stages that process groups: sampling in the rollout service, scoring in the router.

``Stage`` follows the announced runs and keeps one ``RunStage`` for each. A ``RunStage`` reads its stream in batches as
its slots allow, keeps the lease on the entries that it reads, and moves each entry to the next stream or to the dead
letters. After any exception the entry stays in the stream and is delivered again when its lease ends; after
``MOST_DELIVERIES`` deliveries it goes to the dead letters with the last failure as the reason. Deliveries that ended at
a full stream do not count: the entry is not at fault, and the stream may be full for as long as the next stage is down.

A new stage is a subclass of each: ``Stage.open`` makes the part of a run, ``RunStage.process`` works on a batch.
"""

from __future__ import annotations

import abc
import asyncio
import random
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_core.blobs import Blobs
from mor_core.errors import LeaseLost, MorError, StreamFull
from mor_core.settings import StreamSettings
from mor_core.streams import Consumer, Entry, RunAnnouncement, Streams, active_runs
from mor_core.tasks import stop
from mor_core.wire import Record, StageName, StreamName

R = TypeVar("R", bound=Record)

MOST_DELIVERIES = 8
"""Deliveries of an entry after which it is given up, whatever failed: an entry that no consumer can handle must not
occupy them forever."""
_WATCH_S = 1.0
"""Time between reads of the announced runs, seconds: the longest that a new run waits for its stage."""
_BLOCK_S = 1.0
"""Longest wait for entries in one read, seconds: the longest that a stage takes to notice that it should end."""
_PAUSE_S = 1.0
"""Mean pause after a read that failed, seconds, jittered so that consumers do not return together."""
_FAILURES_KEPT = 1000
"""Entries whose last failure is remembered for their dead letter; a few hundred bytes each."""

log = structlog.get_logger(__name__)


class RunStage(abc.ABC, Generic[R]):
    """A stage's work on one run."""

    stage: ClassVar[StageName]
    source: ClassVar[StreamName]
    target: ClassVar[StreamName]

    def __init__(
        self,
        run: str,
        redis: Redis,
        settings: StreamSettings,
        slots: asyncio.Semaphore,
        *,
        batch: int = 1,
        forward_timeout_s: float = 60.0,
    ) -> None:
        """``slots`` bounds the batches in progress, ``batch`` the entries of one; a batch keeps its slot to its end.

        ``forward_timeout_s``: longest wait for room in the next stream, seconds.
        """
        self.run = run
        self.blobs = Blobs(redis, run, settings.blob_dir)
        streams = Streams(redis, run, settings.stream_bound)
        self._consumer: Consumer[R] = Consumer(streams, self.source, self.stage, settings.lease_s)
        self._slots = slots
        self._batch = batch
        self._forward_timeout_s = forward_timeout_s
        self._failures: dict[str, str] = {}

    @abc.abstractmethod
    async def process(self, entries: Sequence[Entry[R]]) -> None:
        """Call ``forward`` or ``give_up`` for each entry.

        After an exception, and for an entry left out, another delivery follows when the lease ends.
        """

    async def ready(self) -> None:
        """Wait until entries can be worked on; they are safest in the stream until then."""

    def share(self) -> int:
        """Return the most batches that one read may start."""
        return 1

    def deferred(self, entries: Sequence[Entry[R]], error: Exception) -> None:
        """Count entries that stay in the stream because of ``error``."""

    async def work(self) -> None:
        """Read and process batches until cancelled; entries in progress are then handed back."""
        async with self._consumer, asyncio.TaskGroup() as tasks:
            while True:
                await self.ready()
                reserved = await self._reserve()
                batches: list[list[Entry[R]]] = []
                try:
                    batches = await self._read(reserved)
                finally:
                    for _ in range(reserved - len(batches)):
                        self._slots.release()
                for batch in batches:
                    tasks.create_task(self._handle(batch))

    async def forward(self, entry: Entry[R], record: Record) -> bool:
        """Write ``record`` to the next stream and settle ``entry``; return whether that was done here and now."""
        try:
            await self._consumer.forward(entry, self.target, record, timeout_s=self._forward_timeout_s)
        except LeaseLost as error:
            log.info("another consumer was first", group=entry.record.group_id, reason=str(error))
            return False
        except StreamFull as error:
            await self._consumer.uncount(entry)
            self._defer([entry], error)
            return False
        self._failures.pop(entry.id, None)
        return True

    async def give_up(self, entry: Entry[R], reason: str, *, attempts: int | None = None) -> None:
        """Move ``entry`` to the dead letters."""
        await self._consumer.give_up(entry, reason, attempts=attempts)
        self._failures.pop(entry.id, None)

    async def _reserve(self) -> int:
        await self._slots.acquire()
        taken = 1
        while taken < self.share() and not self._slots.locked():
            await self._slots.acquire()
            taken += 1
        return taken

    async def _read(self, batches: int) -> list[list[Entry[R]]]:
        try:
            entries = await self._consumer.read(batches * self._batch, _BLOCK_S)
        except (RedisError, MorError) as error:
            log.warning("a stream cannot be read", stream=self.source, run=self.run, error=str(error))
            await asyncio.sleep(random.uniform(0.5, 1.5) * _PAUSE_S)
            return []
        return [entries[start : start + self._batch] for start in range(0, len(entries), self._batch)]

    async def _handle(self, entries: Sequence[Entry[R]]) -> None:
        try:
            async with self._consumer.leased(entries):
                fresh = [entry for entry in entries if entry.deliveries == 1]
                again = [[entry] for entry in entries if entry.deliveries > 1]  # alone, so that it fails alone
                await asyncio.gather(*(self._attempt(part) for part in [fresh, *again] if part))
        except RedisError as error:
            self._defer(entries, error)  # the lease could not be renewed
        finally:
            self._slots.release()

    async def _attempt(self, entries: Sequence[Entry[R]]) -> None:
        try:
            if entries[0].deliveries > MOST_DELIVERIES:
                await self._exhaust(entries[0])
            else:
                await self.process(entries)
        except LeaseLost as error:
            log.info("another consumer was first", run=self.run, reason=str(error))
        except (MorError, RedisError) as error:
            self._defer(entries, error)
        except Exception as error:  # one entry must not end the run; the bound on deliveries ends the entry
            log.error("a batch failed", run=self.run, exc_info=error)
            self._defer(entries, error)

    def _defer(self, entries: Sequence[Entry[R]], error: Exception) -> None:
        log.warning(
            "entries stay in the stream", stream=self.source, run=self.run, entries=len(entries), error=str(error)
        )
        for entry in entries:
            self._failures[entry.id] = f"{type(error).__name__}: {error}"[:500]
        while len(self._failures) > _FAILURES_KEPT:
            del self._failures[next(iter(self._failures))]
        self.deferred(entries, error)

    async def _exhaust(self, entry: Entry[R]) -> None:
        failure = self._failures.get(entry.id, "the consumers that held it ended")
        await self.give_up(entry, f"delivered {entry.deliveries} times and never settled; last failure: {failure}")


class Stage(abc.ABC, Generic[R]):
    """A stage's work on all active runs, one task for each."""

    def __init__(self, redis: Redis, watch_s: float = _WATCH_S) -> None:
        self._redis = redis
        self._watch_s = watch_s
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @abc.abstractmethod
    async def open(self, announcement: RunAnnouncement) -> RunStage[R]:
        """Make the part that works on a run."""

    @property
    def ended(self) -> bool:
        """True once the stage can no longer work; ``work`` then returns."""
        return False

    @property
    def runs(self) -> list[str]:
        """Runs in progress."""
        return sorted(self._tasks)

    async def work(self) -> None:
        """Follow the announced runs until cancelled or ``ended``."""
        try:
            while not self.ended:
                try:
                    await self._follow(await active_runs(self._redis))
                except RedisError as error:
                    log.warning("the active runs cannot be read", error=str(error))
                await asyncio.sleep(self._watch_s)
        finally:
            await stop(self._tasks.values())

    async def _follow(self, announced: Sequence[RunAnnouncement]) -> None:
        names = {announcement.run for announcement in announced}
        for run, task in list(self._tasks.items()):
            if run in names and not task.done():
                continue
            (failure,) = await stop([task])
            if failure is None:
                log.info("a run is over", run=run)
            else:
                log.error("work on a run stopped; it starts again while the run is active", run=run, exc_info=failure)
            del self._tasks[run]
        for announcement in announced:
            if announcement.run not in self._tasks:
                log.info("work on a run begins", run=announcement.run)
                self._tasks[announcement.run] = asyncio.create_task(
                    self._work_on(announcement), name=f"run {announcement.run}"
                )

    async def _work_on(self, announcement: RunAnnouncement) -> None:
        stage = await self.open(announcement)
        await stage.work()
