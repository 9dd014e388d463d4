"""Reward stage: takes the groups of every active run from the stream ``rollouts`` to the stream ``rewards``."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence

import structlog
from mor_core import tracing
from mor_core.errors import BlobMissing
from mor_core.run_announcements import RunAnnouncement
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stage import RunStage, Stage
from mor_core.stream_consumer import Entry
from mor_core.wire import GroupReward, RewardItem, RewardRecord, RolloutRecord, image_hashes
from redis.asyncio import Redis

from mor_router import metrics
from mor_router.clients.pool import ClientPool
from mor_router.config import RouterSettings
from mor_router.embedding import LIVE, embedding_for
from mor_router.retry_pause import retry_pause_s
from mor_router.rewarding.group_batch import GroupBatch, LastAttempt, Unrewarded
from mor_router.rewarding.pipeline import RewardPipeline

_IDLE_S = 1.0
"""Seconds between checks for an active client, while there is none."""

RolloutEntry = Entry[RolloutRecord]

log = structlog.get_logger(__name__)


class RunRewardStage(RunStage[RolloutRecord]):
    """Part of the reward stage that scores the groups of one run.

    A group without a reward is tried again, ``quorum_attempts`` times in all, and only the clients that failed are
    called again. While calls to clients fail without which there is no quorum, it waits longer, until they answer or
    ``clients.reliability`` puts them on probation. Then it goes to the dead letters, as does a group whose images are
    gone.
    """

    stage, source, target = "router", "rollouts", "rewards"

    def __init__(
        self, run: str, redis: Redis, settings: RouterSettings, pool: ClientPool, reward_pipeline: RewardPipeline
    ) -> None:
        slots = asyncio.Semaphore(settings.batches_in_flight)
        super().__init__(run, redis, settings, slots, batch=settings.batch_groups)
        self._settings = settings
        self._pool = pool
        self._reward_pipeline = reward_pipeline
        self._spans: dict[str, tracing.Span] = {}

    async def ready(self) -> None:
        while not self._pool.names_in_state("active"):  # noqa: ASYNC110 - the pool has no event to wait for
            await asyncio.sleep(_IDLE_S)

    def deferred(self, entries: Sequence[RolloutEntry], error: BaseException) -> None:
        metrics.GROUPS.labels("deferred").inc(len(entries))

    async def process(self, entries: Sequence[RolloutEntry]) -> None:
        self._spans |= {entry.id: _begin_span(entry) for entry in entries}
        try:
            images: dict[str, bytes] = {}
            await self._score([entry for entry in entries if await self._fetch_images(entry, images)], images)
        finally:
            for entry in entries:
                if (span := self._spans.pop(entry.id, None)) is not None:
                    span.end()

    async def give_up(self, entry: RolloutEntry, reason: str, *, attempts: int | None = None) -> bool:
        span = self._spans.pop(entry.id, None) or _begin_span(entry)
        span.fail(reason)
        try:
            dead = await super().give_up(entry, reason, attempts=attempts)
            if dead:  # not before: while the dead letters are full, the group stays
                metrics.GROUPS.labels("dead").inc()
            return dead
        finally:
            span.end()

    async def _fetch_images(self, entry: RolloutEntry, images: dict[str, bytes]) -> bool:
        """Add the group's images to ``images``; return whether they are all there, else give the group up."""
        sampled = entry.record.stamps.get("rollout")
        if sampled is not None:
            metrics.QUEUE_WAIT.observe(max(0.0, SERVER_CLOCK.now() - sampled))
        try:
            for digest in image_hashes(entry.record.prompt.messages):
                images[digest] = images.get(digest) or await self.blobs.get(digest)
        except BlobMissing as error:
            await self.give_up(entry, str(error), attempts=entry.deliveries)
            return False
        return True

    async def _score(self, entries: Sequence[RolloutEntry], images: dict[str, bytes]) -> None:
        waiting = {entry.id: entry for entry in entries}
        known: LastAttempt | None = None
        patient_until = time.monotonic() + 2 * self._settings.outage_wait_s
        for attempt in itertools.count(1):
            if not waiting:
                return
            retry_s = retry_pause_s(self._settings.group_retry_s, attempt)
            traces = {name: self._spans[name].traceparent for name in waiting}
            policies = {name: _policy(entry.record) for name, entry in waiting.items()}
            groups = GroupBatch([_item(entry) for entry in waiting.values()], images, traces, policies)
            with embedding_for(LIVE):
                outcomes, known = await self._reward_pipeline.reward(
                    groups, self._settings.deadline_s, known=known, retry_s=retry_s
                )
            patient = time.monotonic() < patient_until
            problem = ""
            for outcome in outcomes:
                result = outcome.result
                if not isinstance(result, Unrewarded):
                    await self._forward(waiting.pop(outcome.item_id), result)
                elif attempt < self._settings.quorum_attempts or (result.outage and patient):
                    problem = problem or result.problem
                else:
                    await self.give_up(waiting.pop(outcome.item_id), result.problem, attempts=attempt)
            if waiting:
                metrics.GROUPS.labels("retried").inc(len(waiting))
                log.warning("groups are retried", groups=len(waiting), attempt=attempt, reason=problem)
                await asyncio.sleep(retry_s)

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
        if await self.forward(entry, record):
            metrics.GROUPS.labels("scored").inc()


class RewardStage(Stage[RolloutRecord]):
    """Stage that scores the groups of all active runs."""

    def __init__(
        self, redis: Redis, settings: RouterSettings, pool: ClientPool, reward_pipeline: RewardPipeline
    ) -> None:
        super().__init__(redis, settings.service_token)
        self._settings = settings
        self._pool = pool
        self._reward_pipeline = reward_pipeline

    async def open(self, announcement: RunAnnouncement) -> RunRewardStage:
        return RunRewardStage(announcement.run, self._redis, self._settings, self._pool, self._reward_pipeline)


def _begin_span(entry: RolloutEntry) -> tracing.Span:
    record = entry.record
    return tracing.begin("score", parent=record.trace or "", kind="consumer", run=record.run, group=record.group_id)


def _policy(rollout: RolloutRecord) -> str:
    """Name run and weights version as the rollout service does, for the labelled pairs."""
    return f"{rollout.run}:{rollout.weights_version}"


def _item(entry: RolloutEntry) -> RewardItem:
    prompt = entry.record.prompt
    return RewardItem(
        item_id=entry.id,
        messages=prompt.messages,
        responses=entry.record.responses,
        objective=prompt.objective,
    )
