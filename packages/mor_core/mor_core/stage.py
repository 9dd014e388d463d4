"""Base of the stages that process groups: sampling in the rollout service, scoring in the router.

``Stage`` follows the announced runs and keeps one ``RunStage`` for each. A new stage is a subclass of both:
``Stage.open`` makes the part of a run, ``RunStage.process`` works on a batch.
"""

from __future__ import annotations

import abc
import asyncio
import random
import time
from collections.abc import Sequence
from typing import Generic, TypeVar

import structlog
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_core.failures import describe_failure
from mor_core.metrics import TASK_RESTARTS
from mor_core.run_announcements import NO_TOKEN, AnnouncedRuns, RunAnnouncement
from mor_core.run_stage import RunStage
from mor_core.tasks import stop
from mor_core.wire import Record

R = TypeVar("R", bound=Record)

_WATCH_S = 1.0
"""Time between reads of the announced runs, seconds: the longest that a new run waits for its stage."""
_MOST_RUNS = 256
"""Runs in work at a time: far more than one router or engine serves, and a bound on what forged announcements start."""
_LONGEST_PAUSE_S = 60.0
"""Longest mean pause before work on a run starts again, seconds; a run that lasted longer starts at once."""

log = structlog.get_logger(__name__)


class Stage(abc.ABC, Generic[R]):
    """A stage's work on all active runs, one task for each."""

    def __init__(self, redis: Redis, token: SecretStr = NO_TOKEN, watch_s: float = _WATCH_S) -> None:
        """``token``: the service token, with which run control's workers sign their announcements."""
        self._redis = redis
        self._announced = AnnouncedRuns(redis, token)
        self._watch_s = watch_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._began: dict[str, float] = {}
        """Run -> monotonic time at which work on it began last."""
        self._pauses: dict[str, tuple[float, float]] = {}
        """Run whose work failed -> mean pause in seconds, and monotonic time at which work starts again."""
        self.problem: str | None = "the active runs have not been read yet"
        """Reason why new runs are not noticed, if any; for ``/readyz``."""

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
                    await self._follow(await self._announced.read())
                    self.problem = None
                except RedisError as error:
                    reason = describe_failure(error)
                    self.problem = f"the active runs cannot be read: {reason}; see docs/runbooks.md, unreadable entries"
                    log.warning("the active runs cannot be read", error=reason)
                except Exception as error:  # the runs in work go on
                    self.problem = f"the active runs cannot be followed: {type(error).__name__}"
                    log.error("the active runs cannot be followed", exc_info=error)
                await asyncio.sleep(self._watch_s)
        finally:
            await stop(self._tasks.values())

    async def _follow(self, announced: Sequence[RunAnnouncement]) -> None:
        """Work on the first ``_MOST_RUNS`` of the announced runs, and on no other."""
        followed = {announcement.run: announcement for announcement in announced[:_MOST_RUNS]}
        for run, task in list(self._tasks.items()):
            if run in followed and not task.done():
                continue
            (failure,) = await stop([task])
            if failure is None:
                log.info("a run is over", run=run)
            else:
                log.error("work on a run stopped; it starts again while the run is active", run=run, exc_info=failure)
                TASK_RESTARTS.labels("RunStage.work").inc()
                self._postpone(run)
            del self._tasks[run]
            del self._began[run]
        self._pauses = {run: pause for run, pause in self._pauses.items() if run in followed}
        for run, announcement in followed.items():
            if run not in self._tasks and self._may_begin(run):
                log.info("work on a run begins", run=run)
                self._began[run] = time.monotonic()
                self._tasks[run] = asyncio.create_task(self._work_on(announcement), name=f"run {run}")
        if len(announced) > _MOST_RUNS:
            log.warning("too many runs are announced; the others wait", in_work=_MOST_RUNS, announced=len(announced))

    def _postpone(self, run: str) -> None:
        """Pause before work on a run whose work failed: longer each time, and jittered."""
        now = time.monotonic()
        before = self._pauses[run][0] if run in self._pauses and now - self._began[run] < _LONGEST_PAUSE_S else 0.0
        pause = min(_LONGEST_PAUSE_S, 2 * before or self._watch_s)
        self._pauses[run] = (pause, now + random.uniform(0.5, 1.5) * pause)

    def _may_begin(self, run: str) -> bool:
        return run not in self._pauses or self._pauses[run][1] <= time.monotonic()

    async def _work_on(self, announcement: RunAnnouncement) -> None:
        stage = await self.open(announcement)
        await stage.work()
