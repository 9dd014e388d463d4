"""Stage between the streams ``prompts`` and ``rollouts``: a group of responses for each prompt of the active runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import stamina
import structlog
from mor_core import tracing
from mor_core.errors import BlobMissing, Invalid, LeaseLost, MorError, TooLarge, Unavailable
from mor_core.failures import describe_failure
from mor_core.run_announcements import RunAnnouncement
from mor_core.run_stage import RunStage
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stage import Stage
from mor_core.stream_consumer import Entry
from mor_core.wire import PromptRecord, RolloutRecord
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_rollout import metrics
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import ImageMismatch
from mor_rollout.group_sampler import GroupSampler
from mor_rollout.limits_report import engine_name
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.download import WeightsDamaged, WeightsUnreachable

_HOPELESS = (BlobMissing, Invalid, TooLarge, ImageMismatch, LeaseLost)
"""Failures that another attempt cannot cure."""
_OUTAGES = (WeightsUnreachable, Unavailable)
"""Failures of run control or of the engine: the group waits for their end."""

log = structlog.get_logger(__name__)


class RolloutStage(Stage[PromptRecord]):
    """The rollout service's work on all active runs. It ends when the engine has failed."""

    def __init__(self, *, settings: RolloutSettings, redis: Redis, base: BaseCheckpoint, sampler: GroupSampler) -> None:
        super().__init__(redis, settings.service_token, settings.watch_interval_s)
        self._settings = settings
        self._base = base
        self._sampler = sampler
        self._slots = asyncio.Semaphore(settings.max_groups_in_flight)
        self.in_flight = 0
        """Number of groups that are being processed."""

    @property
    def ended(self) -> bool:
        """True once the engine has failed."""
        return self._sampler.failure is not None

    async def open(self, announcement: RunAnnouncement) -> RunRollouts:
        """Start work on a run. If it trains another model, its groups stay for a service that has the model."""
        refusal = None
        if not await asyncio.to_thread(self._base.is_same, announcement.model):
            refusal = (
                f"run {announcement.run!r} trains {announcement.model!r}, this rollout service has"
                f" {self._base.model!r}; start a rollout service with the run's model"
            )
            log.error("run refused", run=announcement.run, reason=refusal)
        return RunRollouts(
            announcement.run,
            self._redis,
            self._settings,
            self._slots,
            sampler=self._sampler,
            refusal=refusal,
            share=self._share,
            counted=self._counted,
        )

    def _share(self) -> int:
        """Return the number of slots that one run may take at a time."""
        return max(1, self._settings.max_groups_in_flight // max(1, len(self.runs)))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a group as in flight during the body."""
        self.in_flight += 1
        metrics.IN_FLIGHT.inc()
        try:
            yield
        finally:
            self.in_flight -= 1
            metrics.IN_FLIGHT.dec()


class RunRollouts(RunStage[PromptRecord]):
    """The rollout service's work on one run."""

    stage, source, target = "rollout", "prompts", "rollouts"

    def __init__(
        self,
        run: str,
        redis: Redis,
        settings: RolloutSettings,
        slots: asyncio.Semaphore,
        *,
        sampler: GroupSampler,
        refusal: str | None,
        share: Callable[[], int],
        counted: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """``refusal``: reason why this service cannot sample for the run, if it cannot."""
        super().__init__(run, redis, settings, slots, forward_timeout_s=settings.forward_timeout_s)
        self._max_attempts = settings.max_attempts
        self._sampler = sampler
        self._refusal = refusal
        self._share = share
        self._counted = counted

    async def ready(self) -> None:
        if self._refusal is not None:  # for as long as the run is announced: another service may have its model
            self.waits.blocked = {"rollout service": self._refusal}
            await asyncio.Event().wait()

    def share(self) -> int:
        return self._share()

    async def process(self, entries: Sequence[Entry[PromptRecord]]) -> None:
        """Sample each entry's group and forward it, or give it up."""
        for entry in entries:
            record = entry.record
            if record.stamps:
                metrics.QUEUE_WAIT.observe(max(0.0, SERVER_CLOCK.now() - max(record.stamps.values())))
            with self._counted(), _sample_span(record):
                await self._sample_and_forward(entry)

    async def give_up(
        self,
        entry: Entry[PromptRecord],
        reason: str,
        *,
        attempts: int | None = None,
        weights_version: int | None = None,
        cause: str = "NeverSettled",
    ) -> bool:
        dead = await super().give_up(entry, reason, attempts=attempts, weights_version=weights_version)
        if dead:  # not before: while the dead letters are full, the group stays
            metrics.DEAD.labels(cause).inc()
        return dead

    async def _sample_and_forward(self, entry: Entry[PromptRecord]) -> None:
        attempts = 0
        try:
            async for attempt in stamina.retry_context(
                on=_is_worth_retrying, attempts=self._max_attempts, wait_initial=0.2, wait_max=10.0, timeout=None
            ):
                with attempt:
                    attempts += 1
                    rollout: RolloutRecord = await self._sampler.sample(self.blobs, entry.record)
        except (MorError, TimeoutError) as error:
            if self._sampler.failure is not None:
                return  # the engine failed, not the group: after the restart it is delivered again
            if isinstance(error, _OUTAGES):
                missing = {"weights" if isinstance(error, WeightsUnreachable) else "engine": describe_failure(error)}
                await self.wait_for(entry, missing, self.waits.next_pause_s(entry.id))
                return
            await self._fail(entry, error, attempts)
            return
        if await self.forward(entry, rollout):
            metrics.GROUPS.labels(entry.record.purpose).inc()

    async def _fail(self, entry: Entry[PromptRecord], error: Exception, attempts: int) -> None:
        cause = type(error).__name__
        reason = describe_failure(error)
        tracing.current().fail(reason)
        version = None
        if isinstance(error, WeightsDamaged):
            version, reason = entry.record.weights.version, f"engine {engine_name()}: {reason}"
        attempts = max(attempts, entry.deliveries)
        await self.give_up(entry, reason, attempts=attempts, weights_version=version, cause=cause)


def _sample_span(record: PromptRecord) -> AbstractContextManager[tracing.Span]:
    """Return the span of a group in this service."""
    return tracing.span(
        "sample",
        parent=record.trace or "",
        kind="consumer",
        run=record.run,
        group=record.group_id,
        attempt=record.attempt,
    )


def _is_worth_retrying(error: Exception) -> bool:
    """Return whether another attempt, some 0.2 to 10 s later, may succeed."""
    return isinstance(error, MorError | TimeoutError | RedisError) and not isinstance(error, (*_HOPELESS, *_OUTAGES))
