"""A stage's work on one run: its groups are read in batches, and forwarded, given up or left for later.

A ``RunStage`` reads its stream in batches as its slots allow, keeps the lease on the entries that it reads, and moves
each entry to the next stream or to the dead letters. After any exception, and after ``attempt_timeout_s``, the entry
stays in the stream and is delivered again when its lease ends; after ``MOST_DELIVERIES`` deliveries it goes to the dead
letters with the last failure as the reason.

An outage is a wait: with ``wait_for``, and after a lost connection to the queue server, the entry is read again after a
short pause, as often as it takes, and no delivery counts. Nor do those count that ended at a full stream or disk: the
entry is not at fault, and the stream may be full for as long as the next stage is down. Deliveries to consumers that
ended do count, since the entry may have ended them.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Generic, TypeVar

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_core.background import in_background
from mor_core.blobs import Blobs
from mor_core.disk_full import is_disk_full, is_server_full
from mor_core.errors import LeaseLost, MorError, StreamFull, Superseded, Unavailable
from mor_core.failures import describe_failure
from mor_core.outage_waits import TELL_S, OutageWaits, StageWait, is_server_outage, tell
from mor_core.settings import StageSettings
from mor_core.stream_consumer import Consumer, Entry
from mor_core.streams import Streams
from mor_core.tasks import is_cancelled
from mor_core.wire import Record, StageName, StreamName

R = TypeVar("R", bound=Record)

MOST_DELIVERIES = 8
"""Deliveries of an entry after which it is given up, whatever failed: an entry that no consumer can handle must not
occupy them forever."""
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
        settings: StageSettings,
        slots: asyncio.Semaphore,
        *,
        batch: int = 1,
        forward_timeout_s: float = 60.0,
    ) -> None:
        """``slots`` bounds the batches in progress, ``batch`` the entries of one; a batch keeps its slot to its end.

        ``forward_timeout_s``: longest wait for room in the next stream, seconds.
        """
        self.run = run
        self._redis = redis
        self.blobs = Blobs(redis, run, settings.blob_dir)
        streams = Streams(redis, run, settings.stream_bound)
        self._consumer: Consumer[R] = Consumer(streams, self.source, self.stage, settings.lease_s)
        self._slots = slots
        self._batch = batch
        self._forward_timeout_s = forward_timeout_s
        self._attempt_timeout_s = settings.attempt_timeout_s
        self._unsettled: set[str] = set()
        """Entries in work that are neither forwarded nor given up."""
        self._failures: dict[str, str] = {}
        """Entry -> its last failure."""
        self.waits = OutageWaits(self.stage, settings.lease_s, settings.stream_bound)

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

    def deferred(self, entries: Sequence[Entry[R]], error: BaseException) -> None:
        """Count entries that stay in the stream because of ``error``."""

    async def work(self) -> None:
        """Read and process batches until cancelled; entries in progress are then handed back."""
        async with self._consumer, in_background(others=[self._keep_telling]), asyncio.TaskGroup() as tasks:
            while True:
                await self.ready()
                await self._slots.acquire()
                reserved = 1
                try:
                    reserved += await self._reserve(self.share() - 1)
                    for batch in await self._read(reserved):
                        # Not in the task: one that is cancelled before it begins runs no ``finally``.
                        tasks.create_task(self._handle(batch)).add_done_callback(lambda _: self._slots.release())
                        reserved -= 1
                finally:
                    for _ in range(reserved):
                        self._slots.release()

    async def forward(self, entry: Entry[R], record: Record) -> bool:
        """Write ``record`` to the next stream and settle ``entry``; return whether that was done here and now."""
        try:
            await self._consumer.forward(entry, self.target, record, timeout_s=self._forward_timeout_s)
        except LeaseLost as error:
            log.info("an entry is not forwarded", group=entry.record.group_id, reason=str(error))
            self._forget(entry)
            return False
        except StreamFull as error:
            await self._consumer.uncount(entry)
            self._defer([entry], error)
            return False
        self._forget(entry)
        return True

    async def wait_for(self, entry: Entry[R], missing: Mapping[str, str], pause_s: float) -> None:
        """Leave ``entry`` in the stream for ``pause_s``; ``missing``: who or what is away -> the reason.

        Empty where the entry is only tried again. This delivery does not count.
        """
        wait = self.waits.of(entry.id)
        wait.pauses += 1
        wait.missing, wait.due_at = missing, time.monotonic() + pause_s
        self.waits.add(entry.id, wait)
        self._unsettled.discard(entry.id)
        try:
            await self._consumer.postpone(entry, pause_s)
            wait.uncounted = 0
        except RedisError:  # it is read again when its lease ends
            wait.uncounted += 1

    async def end_waits(self, back: Collection[str]) -> None:
        """Have the entries read again at once that wait for one of ``back``, who or which is back."""
        try:
            await self._consumer.end_pauses(self.waits.end_pauses(back))
        except RedisError as error:  # they are read again when their pauses end
            log.warning("pauses cannot be ended", run=self.run, error=describe_failure(error))

    async def give_up(
        self, entry: Entry[R], reason: str, *, attempts: int | None = None, weights_version: int | None = None
    ) -> bool:
        """Move ``entry`` to the dead letters; return whether that was done.

        It is not where another consumer has settled the entry, nor where a later attempt at the run has begun: the
        entry is settled without a letter then. ``weights_version``: see ``DeadLetter``.
        """
        try:
            done = await self._consumer.give_up(entry, reason, attempts=attempts, weights_version=weights_version)
        except Superseded as error:
            log.info("an entry is left out", group=entry.record.group_id, reason=str(error), failure=reason)
            self._forget(entry)
            return False
        self._forget(entry)
        return done

    def _forget(self, entry: Entry[R]) -> None:
        """Forget an entry that is settled."""
        self._unsettled.discard(entry.id)
        self._failures.pop(entry.id, None)
        self.waits.forget(entry.id)

    async def _keep_telling(self) -> None:
        """Tell the trainer what the groups wait for, until cancelled."""
        told: StageWait | None = None
        try:
            while True:
                wait = self.waits.summary()
                if (missing := wait and wait.missing) != (told and told.missing):
                    log.warning("what groups wait for changed", run=self.run, stage=self.stage, missing=missing)
                try:
                    if wait is not None or told is not None:
                        await tell(self._redis, self.run, self._consumer.name, wait)
                    told = wait
                except RedisError as error:
                    log.warning("a wait cannot be told", run=self.run, error=describe_failure(error))
                await asyncio.sleep(TELL_S)
        finally:
            if told is not None:
                with contextlib.suppress(RedisError):  # the line expires
                    await tell(self._redis, self.run, self._consumer.name, None)

    async def _reserve(self, most: int) -> int:
        """Take up to ``most`` slots that are free now, and return their number."""
        taken = 0
        while taken < most and not self._slots.locked():
            await self._slots.acquire()
            taken += 1
        return taken

    async def _read(self, batches: int) -> list[list[Entry[R]]]:
        due_s = self.waits.due_in_s
        try:
            entries = await self._consumer.read(
                batches * self._batch, _BLOCK_S if due_s is None else min(_BLOCK_S, due_s)
            )
        except (RedisError, MorError) as error:
            log.warning("a stream cannot be read", stream=self.source, run=self.run, error=describe_failure(error))
            await asyncio.sleep(random.uniform(0.5, 1.5) * _PAUSE_S)
            return []
        return [entries[start : start + self._batch] for start in range(0, len(entries), self._batch)]

    async def _handle(self, delivered: Sequence[Entry[R]]) -> None:
        entries = [
            replace(entry, deliveries=max(1, entry.deliveries - self.waits.of(entry.id).uncounted))
            for entry in delivered
        ]
        fresh = [entry for entry in entries if entry.deliveries == 1]
        again = [[entry] for entry in entries if entry.deliveries > 1]  # alone, so that it fails alone
        async with self._consumer.leased(entries), asyncio.TaskGroup() as tasks:
            for part in [fresh, *again]:
                if part:
                    tasks.create_task(self._attempt(part))

    async def _attempt(self, entries: Sequence[Entry[R]]) -> None:
        self._unsettled |= {entry.id for entry in entries}
        try:
            if entries[0].deliveries > MOST_DELIVERIES:
                await self._exhaust(entries[0])
            else:
                await self._process_in_time(entries)
        except LeaseLost as error:
            log.info("another consumer was first", run=self.run, reason=str(error))
        except (MorError, RedisError) as error:
            if isinstance(error, RedisError) and is_server_outage(error):
                await self._postpone(entries, error)
            else:
                await self._uncount_if_full(entries, error)
                self._defer(entries, error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # one entry must not end the run; the bound on deliveries ends the entry
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            await self._uncount_if_full(entries, error)
            log.error("a batch failed", run=self.run, exc_info=error)
            self._defer(entries, error)
        finally:
            self._unsettled -= {entry.id for entry in entries}

    async def _uncount_if_full(self, entries: Sequence[Entry[R]], error: BaseException) -> None:
        """Take back the delivery of entries that a full disk or queue server kept from being settled: it may last."""
        if is_disk_full(error) or is_server_full(error):
            for entry in entries:
                if entry.id in self._unsettled:
                    with contextlib.suppress(RedisError):
                        await self._consumer.uncount(entry)

    async def _process_in_time(self, entries: Sequence[Entry[R]]) -> None:
        """Process entries within ``attempt_timeout_s``.

        Raises:
            Unavailable: they took longer.
        """
        try:
            async with asyncio.timeout(self._attempt_timeout_s) as limit:
                await self.process(entries)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Unavailable(
                f"an attempt took over {self._attempt_timeout_s:g} s; find what hangs, or raise MOR_ATTEMPT_TIMEOUT_S"
            ) from error

    async def _postpone(self, entries: Sequence[Entry[R]], error: RedisError) -> None:
        """Have entries read again after a failure of the queue server."""
        reason, staying = describe_failure(error), [entry for entry in entries if entry.id in self._unsettled]
        log.warning("the queue server failed", stream=self.source, run=self.run, entries=len(staying), error=reason)
        for entry in staying:
            await self.wait_for(entry, {}, random.uniform(0.5, 1.5) * _PAUSE_S)
        self.deferred(staying, error)

    def _defer(self, entries: Sequence[Entry[R]], error: BaseException) -> None:
        reason, staying = _with_type(error), [entry for entry in entries if entry.id in self._unsettled]
        log.warning("entries stay in the stream", stream=self.source, run=self.run, entries=len(staying), error=reason)
        for entry in staying:
            self._failures[entry.id] = reason
        while len(self._failures) > _FAILURES_KEPT:
            del self._failures[next(iter(self._failures))]
        self.deferred(staying, error)

    async def _exhaust(self, entry: Entry[R]) -> None:
        failure = self._failures.get(entry.id, "the consumers that held it ended")
        await self.give_up(entry, f"delivered {entry.deliveries} times and never settled; last failure: {failure}")


def _with_type(error: BaseException) -> str:
    """Describe a failure with its type, which ``describe_failure`` leaves out for MoR's own errors."""
    name, described = type(error).__name__, describe_failure(error)
    return described if described.startswith(name) else f"{name}: {described}"
