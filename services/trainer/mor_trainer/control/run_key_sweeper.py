"""Sweeps of the queue server for keys of runs that nobody works on, by run control, which knows the runs.

The keys of a run go a minute after its end (``control.ingest``). This finds what is left otherwise: by a superseded
worker that woke up late, while run control or the queue server was down, or by a run that run control does not know.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection
from dataclasses import dataclass

import structlog
from mor_core.errors import NotFound
from mor_core.failures import describe_failure
from mor_core.fence import ATTEMPT
from mor_core.run_announcements import announced_runs
from mor_core.run_keys import delete_run_keys, runs_with_keys
from redis.asyncio import Redis

from mor_trainer.control.run_store import RunStore

_PAUSE_S = 600.0
"""Mean seconds between sweeps; a sweep looks at the names of all keys, some milliseconds for 10,000."""
_LINGER_S = 120.0
"""Seconds after a run's end in which its keys are left to ``control.ingest``."""
_IDLE_S = 3600.0
"""Seconds without a worker until the keys of an active run go: far above a takeover. The next attempt issues all groups
again."""
_GRACE_S = 86400.0
"""Seconds without an announcement until the keys of an unknown run go: an operator may have restored run control from a
backup, and its workers stop within a minute."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Leftover:
    """Rule for the keys of a run that nobody works on."""

    after_s: float
    keep: Collection[str] = ()


class RunKeySweeper:
    """Sweeper of the queue server's keys of runs. A run that a worker announces is never touched."""

    def __init__(
        self,
        redis: Redis,
        runs: RunStore,
        *,
        linger_s: float = _LINGER_S,
        idle_s: float = _IDLE_S,
        grace_s: float = _GRACE_S,
    ) -> None:
        self._redis = redis
        self._runs = runs
        self._linger_s, self._idle_s, self._grace_s = linger_s, idle_s, grace_s
        self._since: dict[str, float] = {}
        """Run that nobody works on -> monotonic time at which that was first seen."""

    async def sweep(self) -> list[str]:
        """Delete the keys of runs that nobody has worked on for long enough; return those of which there were some.

        Raises:
            RedisError: the server failed.
        """
        announced = await announced_runs(self._redis)
        found = {*await runs_with_keys(self._redis), *announced}
        rules = {run: rule for run in found if not announced.get(run) and (rule := self._rule(run)) is not None}
        now = time.monotonic()
        self._since = {run: self._since.get(run, now) for run in rules}
        due = [run for run, rule in rules.items() if now - self._since[run] >= rule.after_s]
        swept = []
        for run in due:
            if self._rule(run) != rules[run]:  # a worker has claimed it meanwhile
                continue
            if await delete_run_keys(self._redis, run, keep=rules[run].keep):
                swept.append(run)
        return swept

    def _rule(self, run: str) -> _Leftover | None:
        """Return when the keys of a run go that no worker announces; ``None`` where they stay."""
        try:
            worker = self._runs.worker(run)
        except NotFound:
            return _Leftover(self._grace_s)
        if worker is not None:
            return None
        if run not in self._runs.active(0):
            return None if run in self._runs.active(self._linger_s) else _Leftover(0)
        return _Leftover(self._idle_s, keep=("events", ATTEMPT))


async def keep_sweeping_keys(sweeper: RunKeySweeper, *, pause_s: float = _PAUSE_S) -> None:
    """Sweep again and again, until cancelled."""
    while True:
        await asyncio.sleep(random.uniform(0.7, 1.3) * pause_s)
        try:
            for run in await sweeper.sweep():
                log.info("keys of a run that nobody works on deleted", run=run)
        except Exception as error:  # a server or a database that is away now may be there at the next sweep
            log.warning("the queue server cannot be swept", error=describe_failure(error))
