"""Alert of a run whose groups wait for what is away, with names and reasons; it ends when they go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from mor_core.outage_waits import read_waits
from mor_core.run_alerts import AlertName
from mor_core.streams import key, oldest_entry
from mor_core.wire import StageName, StreamName
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mor_trainer.groups.bad_groups import REASON_CHARACTERS

_NAMES: dict[StageName, AlertName] = {"router": "waiting_for_clients", "rollout": "waiting_for_engine"}
_STEADY_S = 5.0
"""Seconds for which groups wait, or go on, before the alert says so: a client that restarts quickly is none."""
_UNREAD_S = 60.0
"""Seconds for which no service takes groups, while none come back, before they count as waiting for one: longer than
a restart, and than the time between two renewals of a lease."""
_READERS: dict[StageName, tuple[StreamName, str, str]] = {
    "rollout": ("prompts", "rollout service", "none takes the prompts; start one, or free one of other runs"),
    "router": ("rollouts", "router", "none takes the sampled groups; start one, or free one of other runs"),
}
"""Stage -> the stream that it reads, what it is called, and what is wrong where nobody reads."""
_MOST_LISTED = 10
"""Names with their reasons in one alert."""

log = structlog.get_logger(__name__)


def listed(missing: Mapping[str, str]) -> str:
    """Return names with their reasons, for people."""
    shown = "; ".join(f"{name} ({reason})" for name, reason in sorted(missing.items())[:_MOST_LISTED])
    more = f" and {len(missing) - _MOST_LISTED} more" if len(missing) > _MOST_LISTED else ""
    return shown[:REASON_CHARACTERS] + more


class WaitAlert:
    """Alerts of one run: one for what the router waits for, one for what the rollout services wait for."""

    def __init__(
        self, redis: Redis, run: str, absent: Callable[[], Mapping[str, str]], emit: Callable[[dict[str, Any]], None]
    ) -> None:
        """``absent`` returns the clients that the training process itself waits for; ``emit`` adds an alert."""
        self._redis = redis
        self._run = run
        self._absent = absent
        self._emit = emit
        self._since: dict[AlertName, float] = {}
        """Alert -> monotonic time since when it should be there, or should not."""
        self._raised: dict[AlertName, set[str]] = {}
        """Alert that is there -> names in it."""
        self.missing: dict[str, str] = {}
        """Reason for each client or part that groups wait for now, by its name."""

    async def check(self, idle_s: float) -> None:
        """Read what groups wait for; raise or end the alerts. ``idle_s``: seconds since a group last came back.

        Raises:
            RedisError: the queue server failed.
        """
        found: dict[StageName, dict[str, str]] = {"router": dict(self._absent()), "rollout": {}}
        for wait in await read_waits(self._redis, self._run):
            # One process that can work on no group is no reason for an alert while others return groups.
            if wait.stage in found and (wait.groups or idle_s > _STEADY_S):
                found[wait.stage] |= wait.missing
        for stage, (stream, name, problem) in _READERS.items():
            if idle_s > _UNREAD_S and not found[stage] and await self._is_unread(stage, stream):
                found[stage] = {name: problem}
        self.missing = {name: reason for missing in found.values() for name, reason in missing.items()}
        for stage, missing in found.items():
            self._follow(_NAMES[stage], missing)

    async def _is_unread(self, stage: StageName, stream: StreamName) -> bool:
        """Return whether a stream has groups and nobody works on them: a consumer at work renews what it holds."""
        name = key(self._run, stream)
        if await oldest_entry(self._redis, name) is None:
            return False
        try:
            held: Any = await self._redis.xpending_range(name, stage, min="-", max="+", count=1)
        except ResponseError:  # no consumer has made the group yet
            return True
        return not held or held[0]["time_since_delivered"] > 1000 * _UNREAD_S

    def end(self, why: str) -> None:
        """End the alerts that are there."""
        for name in list(self._raised):
            self._end(name, why)

    def _follow(self, name: AlertName, missing: Mapping[str, str]) -> None:
        if set(missing) == self._raised.get(name, set()):
            self._since.pop(name, None)
            return
        now = time.monotonic()
        if now - self._since.setdefault(name, now) < _STEADY_S:
            return
        del self._since[name]
        if missing:
            self._raised[name] = set(missing)
            reason = f"groups wait for {listed(missing)}"
            log.warning("alert", run=self._run, name=name, reason=reason)
            self._emit({"name": name, "reason": reason})
        else:
            self._end(name, "the groups go on")

    def _end(self, name: AlertName, why: str) -> None:
        del self._raised[name]
        log.info("an alert is over", run=self._run, name=name, reason=why)
        self._emit({"name": name, "reason": why, "over": True})
