"""Long-lived tasks of a service: watched, and started again when they fail.

A task that ends by an error is logged, counted in ``mor_task_restarts_total`` and started again after a pause that
grows with each failure. Until then ``/readyz`` names it: where the service cannot work without the task, as a missing
part; else among ``degraded``. A task that returns has done its work.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from mor_core.failures import describe_failure
from mor_core.metrics import TASK_RESTARTS
from mor_core.tasks import is_cancelled, stop

_FIRST_PAUSE_S = 0.5
"""Mean pause before the first restart, seconds: most failures are of a moment."""
_LONGEST_PAUSE_S = 30.0
"""Longest mean pause, seconds: a task that works again is not missed for long."""
_LASTING_S = 60.0
"""Seconds after which a task that was started again counts as sound: its next failure is a first one."""

Work = Callable[[], Awaitable[None]]
"""Function of a long-lived task; it can be called again. Its name names the task in logs, metrics and ``/readyz``."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Ended:
    name: str
    essential: bool
    reason: str


_ended: dict[object, _Ended] = {}
"""Tasks of this process that ended and wait to be started again."""


def ended_tasks(*, essential: bool) -> dict[str, str]:
    """Return the reasons why tasks ended that are not started again yet, by task.

    ``essential``: of those that the service cannot work without, or of the others.
    """
    return {each.name: each.reason for each in _ended.values() if each.essential == essential}


def start(work: Work, *, essential: bool = False) -> asyncio.Task[None]:
    """Start a long-lived task; ``mor_core.tasks.stop`` ends it.

    ``essential``: the service cannot work without it, so that ``/readyz`` is false while it has ended.
    """
    name = name_of(work)
    return asyncio.create_task(_keep_running(work, name, essential), name=name)


@asynccontextmanager
async def in_background(*essential: Work, others: Sequence[Work] = ()) -> AsyncIterator[None]:
    """Run long-lived tasks until the body ends. ``others``: those that the service can work without."""
    tasks = [start(work, essential=True) for work in essential] + [start(work) for work in others]
    try:
        yield
    finally:
        await stop(tasks)


def name_of(work: Work) -> str:
    """Return the name of a task: that of its function, with its class or the function around it."""
    function: Any = work.func if isinstance(work, partial) else work
    return str(function.__qualname__).replace(".<locals>", "")


async def _keep_running(work: Work, name: str, essential: bool) -> None:
    pause_s, place = 0.0, object()
    while True:
        began = time.monotonic()
        try:
            await work()
            return
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            failure = error
        sound = time.monotonic() - began > _LASTING_S
        pause_s = _FIRST_PAUSE_S if sound or not pause_s else min(2 * pause_s, _LONGEST_PAUSE_S)
        log.error("background work ended; it starts again", work=name, pause_s=pause_s, exc_info=failure)
        TASK_RESTARTS.labels(name).inc()
        _ended[place] = _Ended(name, essential, f"ended by {describe_failure(failure)}; it starts again, see the log")
        try:
            await asyncio.sleep(random.uniform(0.5, 1.5) * pause_s)
        finally:
            del _ended[place]
