"""The loop from ``rollouts`` to ``rewards``, for every active run."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence

import structlog
from mor_core import tracing
from mor_core.blobs import Blobs
from mor_core.errors import BlobMissing, LeaseLost, MorError, StreamFull
from mor_core.streams import Consumer, Entry, Streams, active_runs
from mor_core.tasks import stop
from mor_core.wire import GroupReward, RewardItem, RewardRecord, RolloutRecord, image_hashes
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_router import metrics
from mor_router.clients.pool import ClientPool
from mor_router.clients.scoring import ClientResponses
from mor_router.config import RouterSettings
from mor_router.rewarding.pipeline import GroupBatch, RewardPipeline, Unrewarded

_WATCH_S = 1.0
_BLOCK_S = 1.0
_PAUSE_S = 1.0
_FORWARD_TIMEOUT_S = 60.0
_MOST_DELIVERIES = 8

RolloutEntry = Entry[RolloutRecord]

log = structlog.get_logger(__name__)


class Worker:
    """Scores the groups of all active runs."""

    def __init__(
        self, redis: Redis, settings: RouterSettings, pool: ClientPool, reward_pipeline: RewardPipeline
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._pool = pool
        self._reward_pipeline = reward_pipeline
        self._runs: dict[str, asyncio.Task[None]] = {}

    @property
    def runs(self) -> list[str]:
        """Runs whose groups are being scored."""
        return sorted(self._runs)

    async def watch(self) -> None:
        """Follow the announcements: one task for each active run. Until cancelled."""
        try:
            while True:
                try:
                    await self._follow({run.run for run in await active_runs(self._redis)})
                except RedisError as error:
                    log.warning("active runs cannot be read", error=str(error))
                await asyncio.sleep(_WATCH_S)
        finally:
            await stop(self._runs.values())

    async def _follow(self, announced: set[str]) -> None:
        for run, task in list(self._runs.items()):
            if run in announced and not task.done():
                continue
            (failure,) = await stop([task])
            if failure is None:
                log.info("a run is over", run=run)
            else:
                log.error("scoring a run stopped; it starts again while it is active", run=run, exc_info=failure)
            del self._runs[run]
        for run in sorted(announced - set(self._runs)):
            log.info("scoring a run", run=run)
            self._runs[run] = asyncio.create_task(
                RunWorker(run, self._redis, self._settings, self._pool, self._reward_pipeline).work(),
                name=f"score {run}",
            )


class RunWorker:
    """Scores the groups of one run."""

    def __init__(
        self, run: str, redis: Redis, settings: RouterSettings, pool: ClientPool, reward_pipeline: RewardPipeline
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._reward_pipeline = reward_pipeline
        self._blobs = Blobs(redis, run, settings.blob_dir)
        streams = Streams(redis, run, settings.stream_bound)
        self._consumer: Consumer[RolloutRecord] = Consumer(streams, "rollouts", "router", settings.lease_s)
        self._slots = asyncio.Semaphore(settings.batches_in_flight)

    async def work(self) -> None:
        """Until cancelled; what is in flight then is handed back."""
        async with self._consumer, asyncio.TaskGroup() as batches:
            while True:
                if not self._pool.names_in_state("active"):
                    await asyncio.sleep(_PAUSE_S)  # without a client to ask, groups are safest in the stream
                    continue
                await self._slots.acquire()
                entries: list[RolloutEntry] = []
                try:
                    entries = await self._consumer.read(self._settings.batch_groups, _BLOCK_S)
                except RedisError as error:
                    log.warning("rollouts cannot be read", error=str(error))
                    await asyncio.sleep(random.uniform(0.5, 1.5) * _PAUSE_S)
                finally:
                    if not entries:
                        self._slots.release()
                if entries:
                    batches.create_task(self._handle(entries))

    async def _handle(self, entries: Sequence[RolloutEntry]) -> None:
        spans = {entry.id: _begin(entry) for entry in entries}
        try:
            async with self._consumer.leased(entries):
                await self._score(entries, spans)
        except (MorError, RedisError) as error:
            # The entries are still held in the stream and come back when their lease ends.
            metrics.GROUPS.labels("deferred").inc(len(entries))
            log.warning("a batch was deferred", groups=len(entries), error=str(error))
        except Exception as error:  # one group that trips us must not end the run; it goes to the dead letters in time
            metrics.GROUPS.labels("deferred").inc(len(entries))
            log.error("a batch failed", groups=len(entries), exc_info=error)
        finally:
            self._slots.release()
            for span in spans.values():
                span.end()

    async def _score(self, entries: Sequence[RolloutEntry], spans: Mapping[str, tracing.Span]) -> None:
        images: dict[str, bytes] = {}
        readable = [entry for entry in entries if await self._open(entry, images, spans[entry.id])]
        waiting = {entry.id: entry for entry in readable}
        known: ClientResponses | None = None
        for attempt in range(1, self._settings.group_attempts + 1):
            if not waiting:
                return
            traces = {name: spans[name].traceparent for name in waiting}
            groups = GroupBatch([_item(entry) for entry in waiting.values()], images, traces)
            outcomes, known = await self._reward_pipeline.reward(groups, self._settings.deadline_s, known=known)
            problems: dict[str, str] = {}
            for outcome in outcomes:
                if isinstance(outcome.result, Unrewarded):
                    problems[outcome.item_id] = outcome.result.problem
                else:
                    await self._forward(waiting.pop(outcome.item_id), outcome.result)
            if attempt == self._settings.group_attempts:
                for item_id, problem in problems.items():
                    await self._give_up(waiting[item_id], problem, attempt, spans[item_id])
            elif problems:
                metrics.GROUPS.labels("retried").inc(len(problems))
                reason = next(iter(problems.values()))
                log.warning("groups are retried", groups=len(problems), attempt=attempt, reason=reason)
                await asyncio.sleep(random.uniform(0.5, 1.5) * self._settings.group_retry_s * 2 ** (attempt - 1))

    async def _open(self, entry: RolloutEntry, images: dict[str, bytes], span: tracing.Span) -> bool:
        """Fetch the group's images; a group that cannot be scored goes to the dead letters."""
        sampled = entry.record.stamps.get("rollout")
        if sampled is not None:
            metrics.QUEUE_WAIT.observe(max(0.0, time.time() - sampled))
        if entry.deliveries > _MOST_DELIVERIES:
            reason = f"delivered {entry.deliveries} times and never settled"
            await self._give_up(entry, reason, entry.deliveries, span)
            return False
        try:
            for digest in image_hashes(entry.record.prompt.messages):
                images[digest] = images.get(digest) or await self._blobs.get(digest)
        except BlobMissing as error:
            await self._give_up(entry, str(error), entry.deliveries, span)
            return False
        return True

    async def _forward(self, entry: RolloutEntry, reward: GroupReward) -> None:
        rollout = entry.record
        record = RewardRecord(
            run=rollout.run,
            group_id=rollout.group_id,
            trace=rollout.trace,
            stamps=rollout.stamped("router"),
            rollout=rollout,
            **dict(reward),
        )
        try:
            await self._consumer.forward(entry, "rewards", record, timeout_s=_FORWARD_TIMEOUT_S)
            metrics.GROUPS.labels("scored").inc()
        except LeaseLost:
            log.info("another router settled a group", group=rollout.group_id)
        except StreamFull as error:
            metrics.GROUPS.labels("deferred").inc()
            log.warning("a reward waits for room", group=rollout.group_id, error=str(error))

    async def _give_up(self, entry: RolloutEntry, reason: str, attempts: int, span: tracing.Span) -> None:
        metrics.GROUPS.labels("dead").inc()
        span.fail(reason)
        await self._consumer.give_up(entry, reason, attempts=attempts)


def _begin(entry: RolloutEntry) -> tracing.Span:
    record = entry.record
    return tracing.begin("score", parent=record.trace or "", kind="consumer", run=record.run, group=record.group_id)


def _item(entry: RolloutEntry) -> RewardItem:
    prompt = entry.record.prompt
    return RewardItem(
        item_id=entry.id,
        messages=prompt.messages,
        responses=entry.record.responses,
        objective=prompt.objective,
    )
