"""Announcements of active runs, by which the stages know whose streams to read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from redis.asyncio import Redis

from mor_core.errors import Invalid
from mor_core.stored import StoredEntries
from mor_core.wire import RunId, Wire

RUNS_KEY = "mor:runs"
"""Hash of the announced runs."""
_RUN_TTL_S = 60.0
"""Age at which an announcement no longer counts, seconds: twelve renewals of the trainer."""
_MOST_CLOCK_SKEW_S = 60.0
"""Seconds by which the trainer's clock may be ahead: an announcement from the far future would count for ever."""

_RUNS = StoredEntries("runs", largest=64 << 10)


class RunAnnouncement(Wire):
    """Announcement of an active run to the stages."""

    run: RunId
    model: Annotated[str, Field(min_length=1, max_length=4096)]
    """Base checkpoint: local path or hub name."""
    renewed_at: float
    """Unix time, seconds. An announcement that is not renewed for a minute no longer counts."""


async def announce(redis: Redis, run: str, model: str) -> None:
    """Announce an active run to the stages; the trainer repeats this every few seconds."""
    announcement = RunAnnouncement(run=run, model=model, renewed_at=time.time())
    content = announcement.model_dump_json()
    # Without the key all runs announce themselves again within seconds.
    await _RUNS.write(redis, [RUNS_KEY], lambda: redis.hset(RUNS_KEY, run, content))


async def withdraw(redis: Redis, run: str) -> None:
    """Remove the announcement of a run; stages then stop reading its streams."""
    await redis.hdel(RUNS_KEY, run)


@dataclass(frozen=True)
class RunAnnouncements:
    """Announcements that the queue server holds."""

    active: list[RunAnnouncement]
    """Those renewed within the last minute, in the order of their names."""
    unreadable: int
    """Number of those that do not fit."""


async def announced_runs(redis: Redis) -> RunAnnouncements:
    """Read the announcements of runs.

    Raises:
        RedisError: the server failed, or the key of the announcements has another type.
    """
    stored: dict[Any, Any] = await redis.hgetall(RUNS_KEY)
    found = _RUNS.parse_all(stored, _announcement).values()
    horizon = time.time() - _RUN_TTL_S
    active = sorted((run for run in found if run.renewed_at > horizon), key=lambda run: run.run)
    return RunAnnouncements(active, len(stored) - len(found))


def _announcement(run: bytes, value: bytes) -> RunAnnouncement:
    """Parse an announcement.

    Raises:
        ValueError: it does not fit.
        Invalid: it is of another run, or from the future.
    """
    announcement = RunAnnouncement.model_validate_json(value)
    if announcement.run.encode() != run:
        raise Invalid("an announcement is stored under another run's name")
    if announcement.renewed_at > time.time() + _MOST_CLOCK_SKEW_S:
        raise Invalid("renewed_at is in the future")
    return announcement
