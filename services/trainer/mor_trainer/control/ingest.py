"""Transfer of every run's stream ``events`` to the history, to metrics, trackers and waiting readers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections import defaultdict
from collections.abc import AsyncIterator

import structlog
from mor_core import background
from mor_core.background import in_background
from mor_core.blob_sweep import delete_run
from mor_core.errors import Conflict, NotFound, StreamError
from mor_core.failures import describe_failure
from mor_core.fair_share import FairShare
from mor_core.redis_address import shown_address
from mor_core.redis_permissions import RedisPermissions
from mor_core.run_keys import delete_run_keys
from mor_core.runs import RunSpec
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stream_consumer import Consumer
from mor_core.streams import GROUP_STREAMS, Streams
from mor_core.tasks import in_thread, stop
from mor_core.wire import EventRecord
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_trainer import metrics
from mor_trainer.config import ControlSettings
from mor_trainer.control.database import HistoryUnavailable
from mor_trainer.control.history import History
from mor_trainer.control.run_guards import RunGuards
from mor_trainer.control.run_store import RunStore
from mor_trainer.trackers import Trackers

_LEASE_S = 5.0
"""Seconds after which a restarted run control reads an unsettled event again; storing one takes milliseconds."""
_CHECK_S = 1.0
"""Pause between checks for new runs and lost workers: well under the shortest lease of a run."""
_READ_COUNT = 100
"""Events in one read; each is settled by itself."""
_BLOCK_S = 1.0
"""Longest wait for an event, after which gauges are set again."""
_LINGER_S = 60.0
"""Time after a run's end in which late events are still read, and Prometheus reads its series once more. Then the run's
keys are deleted, which no stage reads any more."""

log = structlog.get_logger(__name__)


class Watchers:
    """Readers that wait for events of a run."""

    def __init__(self, most_readers: int) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self.readers = FairShare(most_readers)
        """Open event streams."""

    def wake(self, run: str) -> None:
        """Wake the readers of a run."""
        for event in self._waiting.pop(run, ()):
            event.set()

    async def wait(self, run: str, timeout_s: float) -> None:
        """Wait until something happens in ``run``, or the time is over."""
        event = asyncio.Event()
        self._waiting[run].add(event)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()
        self._waiting[run].discard(event)


class Ingest:
    """Reader of the streams of each run that is active, or ended less than a minute ago.

    Only the owner of the history reads.
    """

    def __init__(
        self,
        settings: ControlSettings,
        runs: RunStore,
        history: History,
        watchers: Watchers,
        trackers: Trackers,
        *,
        guards: RunGuards,
        redis: Redis,
        linger_s: float = _LINGER_S,
    ) -> None:
        self.redis = redis
        self._permissions = RedisPermissions(self.redis, "control")
        self._bound, self._blob_dir, self._linger_s = settings.stream_bound, settings.blob_dir, linger_s
        self._runs = runs
        self._history = history
        self._guards = guards
        self._watchers = watchers
        self._trackers = trackers
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._unstored: dict[str, str] = {}
        """Run whose events wait for the history -> why it takes none."""
        self._address = shown_address(settings.redis_url.get_secret_value())
        self.reachable: str | None = f"the queue server at {self._address} has not answered yet"

    @property
    def unstored(self) -> str | None:
        """Why events wait for the history, if some do."""
        return next(iter(self._unstored.values()), None)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read the streams while the body runs."""
        try:
            async with in_background(self._look):
                yield
        finally:
            await stop(self._readers.values())
            self._readers.clear()

    async def _look(self) -> None:
        while True:
            try:
                for run in self._runs.requeue_lost():
                    log.warning("a worker sent no heartbeat within its lease and lost its run", run=run)
                    self._watchers.wake(run)
                self._start_readers()
            except HistoryUnavailable as error:  # /readyz has the reason too
                log.warning("the history cannot be written", error=describe_failure(error))
            except Exception as error:  # the next look may succeed
                log.error("the runs cannot be looked at", exc_info=error)
            await asyncio.sleep(_CHECK_S)

    async def keep_pinging(self) -> None:
        """Note again and again whether the queue server can be used, whoever owns the history."""
        away = False
        while True:
            try:
                await SERVER_CLOCK.read(self.redis)
                self.reachable = await self._permissions.missing()
                if away:
                    log.info("the queue server answers again", address=self._address)
                away = False
            except (RedisError, OSError) as error:
                reason = describe_failure(error)
                self.reachable = (
                    f"the queue server at {self._address} cannot be reached ({reason}); start it, or correct "
                    "MOR_REDIS_URL"
                )
                if not away:  # once for each outage
                    cure = "start it, or correct MOR_REDIS_URL"
                    log.error("the queue server is away: no run is trained", address=self._address, cure=cure)
                away = True
            await asyncio.sleep(_CHECK_S)

    def _start_readers(self) -> None:
        for run, task in list(self._readers.items()):
            if task.done():
                del self._readers[run]
        for run in self._runs.active(self._linger_s):
            if run not in self._readers and self._is_readable(run):
                self._readers[run] = background.start(functools.partial(self._read, run))

    def _is_readable(self, run: str) -> bool:
        with contextlib.suppress(Conflict):
            self._runs.snapshot(run)
            return True
        return False

    async def _read(self, run: str) -> None:
        streams = Streams(self.redis, run, self._bound)
        consumer: Consumer[EventRecord] = Consumer(streams, "events", "trainer", _LEASE_S)
        async with consumer:
            await self._relay(run, streams, consumer)
        metrics.forget(run)
        if self._is_gone(run):
            await self._delete_keys(run)

    def _is_gone(self, run: str) -> bool:
        """Return whether a run is over, or was deleted."""
        try:
            return self._runs.snapshot(run).state.over
        except NotFound:
            return True

    async def _delete_keys(self, run: str) -> None:
        """Delete what a run that is over has on the queue server and in the shared folder of blobs.

        The sweepers do so later where it fails.
        """
        try:
            keys = await delete_run_keys(self.redis, run)
            files = await in_thread(delete_run, self._blob_dir, run) if self._blob_dir is not None else 0
            log.info("what a run left is deleted", run=run, keys=keys, files=files)
        except (RedisError, OSError) as error:
            log.warning("what a run left cannot be deleted", run=run, error=describe_failure(error))

    async def _store(self, event: EventRecord, spec: RunSpec) -> None:
        """Store an event, and wait while the database takes nothing; the events behind it keep their order."""
        try:
            while True:
                try:
                    return self._take(event, spec)
                except HistoryUnavailable as error:
                    self._unstored[event.run] = describe_failure(error)
                    log.warning("events wait for the history", run=event.run, error=self._unstored[event.run])
                    await asyncio.sleep(random.uniform(0.2, 1.0))
        finally:
            self._unstored.pop(event.run, None)

    def _take(self, event: EventRecord, spec: RunSpec) -> None:
        """Store an event and pass it on; one that does not fit becomes an alert with the event as a dead letter.

        Raises:
            HistoryUnavailable: the database takes nothing now, so the event stays in the stream.
        """
        try:
            if self._history.add(event):
                self._guards.observe(event, spec)
                metrics.observe(event, spec)
                self._trackers.add_event(event, spec)
        except HistoryUnavailable:
            raise
        except NotFound:  # the run was deleted
            return
        except Exception as error:  # whatever an event provokes, the later ones are read
            self._refuse(event, describe_failure(error))

    def _refuse(self, event: EventRecord, reason: str) -> None:
        """Store an alert in place of an event, if the run's own rows allow that.

        Raises:
            HistoryUnavailable: the database takes nothing now.
        """
        try:
            self._history.refuse(event, reason)
        except HistoryUnavailable:
            raise
        except Exception as error:
            log.error("an event cannot be stored", run=event.run, event_id=event.group_id, exc_info=error)

    async def _relay(self, run: str, streams: Streams, consumer: Consumer[EventRecord]) -> None:
        """Pass on a run's events until some time after its end."""
        spec, over = self._runs.spec(run), False
        while run in self._runs.active(self._linger_s):
            try:
                if self._runs.snapshot(run).state.over and not await streams.depth("events"):
                    entries = []  # reading would make the stream, which nobody may be there to delete
                    await asyncio.sleep(_BLOCK_S)
                else:
                    entries = await consumer.read(_READ_COUNT, _BLOCK_S)
                async with consumer.leased(entries):
                    for entry in entries:
                        await self._store(entry.record, spec)
                        await consumer.settle(entry)
                        self._watchers.wake(run)
                state = self._runs.snapshot(run).state
                if state.over and not over:
                    self._trackers.add_end(run, spec, state)
                over = state.over
                metrics.observe_run(run, state, spec)
                for name in GROUP_STREAMS:
                    metrics.observe_stream(run, name, await streams.backlog(name))
            except NotFound:  # it was deleted
                return
            except (RedisError, StreamError, OSError, HistoryUnavailable) as error:
                log.warning("events cannot be read", run=run, error=describe_failure(error))
                await asyncio.sleep(random.uniform(0.2, 1.0))
