"""Reward stage: takes the groups of every active run from the stream ``rollouts`` to the stream ``rewards``."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
from mor_core import tracing
from mor_core.errors import BlobMissing
from mor_core.run_announcements import RunAnnouncement
from mor_core.run_stage import RunStage
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stage import Stage
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


@dataclass
class _Attempts:
    """Attempts to reward a group that has no reward yet."""

    began_at: float = field(default_factory=time.monotonic)
    calls: int = 0
    faults: int = 0
    """Attempts that failed by a fault of the group, or of clients that answered other groups meanwhile."""
    failed_at: float = math.inf
    """Monotonic time of the last attempt."""
    known: LastAttempt | None = None


class RunRewardStage(RunStage[RolloutRecord]):
    """Part of the reward stage that scores the groups of one run.

    A group without a reward stays in the stream and is tried again after a pause; only the clients that failed are
    called again. What is away is waited for, for as long as the run lives: the trainer ends it after
    ``stall_timeout_s``, and ``clients.reliability`` puts a client on probation without which others can reward the
    groups. A group that is at fault itself has ``quorum_attempts`` attempts and then goes to the dead letters, as does
    at once a group whose images are gone. A group for which clients fail while they answer other groups counts as at
    fault; where whole calls fail, after ``outage_wait_s`` have passed twice.
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
        self._attempts: dict[str, _Attempts] = {}
        """Entry without a reward -> what was tried for it; of at most as many as the stream holds."""
        self._open: set[str] = set()
        """Clients that groups waited for at the last read, and whose circuits were not closed."""

    async def ready(self) -> None:
        while not self._pool.names_in_state("active"):
            self.waits.blocked = {
                "active clients": "no client is active; enrol one, or activate one: mor client resume CLIENT --active"
            }
            await asyncio.sleep(_IDLE_S)
        self.waits.blocked = {}
        missing = self.waits.missing
        open_now = {name for name in missing if self._pool.circuit_state(name) != "closed"}
        if back := (self._open & missing) - open_now:
            await self.end_waits(back)
        self._open = open_now

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

    async def give_up(
        self, entry: RolloutEntry, reason: str, *, attempts: int | None = None, weights_version: int | None = None
    ) -> bool:
        self._attempts.pop(entry.id, None)
        span = self._spans.pop(entry.id, None) or _begin_span(entry)
        span.fail(reason)
        try:
            dead = await super().give_up(entry, reason, attempts=attempts, weights_version=weights_version)
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
        """Score groups side by side, so that none waits for the clients of another objective."""
        parts: dict[str, list[RolloutEntry]] = {}
        for entry in entries:
            prompt, tried = entry.record.prompt, self._attempts.get(entry.id)
            alone = entry.id if tried is not None and tried.faults else ""  # it may be what makes a client fail
            kind = json.dumps([prompt.objective, prompt.all_clients, tried is not None, alone], sort_keys=True)
            parts.setdefault(kind, []).append(entry)
        together = [self._score_together(part, images) for part in parts.values()]
        for failure in await asyncio.gather(*together, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _score_together(self, entries: Sequence[RolloutEntry], images: dict[str, bytes]) -> None:
        """Score groups of one objective that are all new, or all tried again."""
        found = [self._attempts[entry.id] for entry in entries if entry.id in self._attempts]
        retry_s = retry_pause_s(self._settings.group_retry_s, 1 + max((tried.calls for tried in found), default=0))
        known = LastAttempt.joined([tried.known for tried in found if tried.known is not None]) if found else None
        groups = GroupBatch(
            [_item(entry) for entry in entries],
            images,
            {entry.id: self._spans[entry.id].traceparent for entry in entries},
            {entry.id: _policy(entry.record) for entry in entries},
            all_clients=entries[0].record.prompt.all_clients,
        )
        with embedding_for(LIVE):
            outcomes, last = await self._reward_pipeline.reward(
                groups, self._settings.deadline_s, known=known, retry_s=retry_s
            )
        honeypots = last.honeypots
        for entry, outcome in zip(entries, outcomes, strict=True):
            result = outcome.result
            if not isinstance(result, Unrewarded):
                self._attempts.pop(entry.id, None)
                await self._forward(entry, result)
                continue
            tried = self._count(entry, result)
            if self._is_hopeless(tried, result):
                await self.give_up(entry, result.problem, attempts=tried.calls)
                continue
            tried.known = LastAttempt({entry.id: last.answers.get(entry.id, {})}, honeypots)
            honeypots = {}  # they travel with the first group that is tried again
            metrics.GROUPS.labels("retried").inc()
            await self.wait_for(entry, result.awaited, retry_s)
        for batch in honeypots.values():
            self._reward_pipeline.try_honeypots_again(batch)

    def _count(self, entry: RolloutEntry, result: Unrewarded) -> _Attempts:
        """Count a failed attempt of a group."""
        tried = self._attempts.pop(entry.id, None) or _Attempts()
        self._attempts[entry.id] = tried
        while len(self._attempts) > self._settings.stream_bound:  # other consumers have taken those over
            del self._attempts[next(iter(self._attempts))]
        failing = [line.client for line in result.clients if line.status in ("error", "timeout")]
        failing = [name for name in failing if name in result.awaited]
        at_fault = not result.awaited or (
            bool(failing) and all(self._pool.has_answered_since(name, tried.failed_at) for name in failing)
        )
        tried.calls, tried.faults, tried.failed_at = tried.calls + 1, tried.faults + at_fault, time.monotonic()
        return tried

    def _is_hopeless(self, tried: _Attempts, result: Unrewarded) -> bool:
        patience_s = 2 * self._settings.outage_wait_s if result.missing else 0.0
        waited_s = time.monotonic() - tried.began_at
        return tried.faults >= self._settings.quorum_attempts and waited_s >= patience_s

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
        self._opened: dict[str, RunRewardStage] = {}
        metrics.WAITING.set_function(self._waiting_groups)

    async def open(self, announcement: RunAnnouncement) -> RunRewardStage:
        opened = RunRewardStage(announcement.run, self._redis, self._settings, self._pool, self._reward_pipeline)
        self._opened = {run: self._opened[run] for run in self.runs if run in self._opened} | {opened.run: opened}
        return opened

    def _waiting_groups(self) -> float:
        return sum(self._opened[run].waits.groups for run in self.runs if run in self._opened)


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
        domain=prompt.domain,
        public=prompt.public,
    )
