"""Whoever announces runs, those that a worker announces keep their places."""

from __future__ import annotations

import asyncio
import time

import pytest
from mor_core.run_announcements import RUNS_KEY, AnnouncedRuns, RunAnnouncement, announce, sweep, withdraw
from mor_core.stored import LEFTOVER_S
from pydantic import SecretStr
from redis.asyncio import Redis

pytestmark = pytest.mark.anyio

TOKEN = SecretStr("service-token")


async def names(runs: AnnouncedRuns) -> list[str]:
    return [line.run for line in await runs.read()]


async def forge(redis: Redis, *runs: str, signature: str = "", age_s: float = 0) -> None:
    """Write announcements without knowing the token."""
    for run in runs:
        line = RunAnnouncement(run=run, model="m", renewed_at=time.time() - age_s, signature=signature)
        await redis.hset(RUNS_KEY, run, line.model_dump_json())  # type: ignore[misc]


async def test_runs_are_active_while_they_are_announced(redis: Redis) -> None:
    await announce(redis, "b", "model-b")
    await announce(redis, "a", "model-a")
    assert await names(AnnouncedRuns(redis)) == ["a", "b"]
    await forge(redis, "old", age_s=120)
    await withdraw(redis, "b")
    assert await names(AnnouncedRuns(redis)) == ["a"]


async def test_signed_announcements_come_first_however_many_others_there_are(redis: Redis) -> None:
    runs = AnnouncedRuns(redis, TOKEN)
    await forge(redis, *(f"a{number}" for number in range(3000)), signature="0" * 64)
    await runs.read()
    await announce(redis, "z-genuine", "m", TOKEN)
    found = await names(runs)
    assert found[0] == "z-genuine"
    assert len(found) < 1500, "the memory for forged ones is bounded"


async def test_without_a_token_the_runs_seen_first_keep_their_places(redis: Redis) -> None:
    runs = AnnouncedRuns(redis)
    await announce(redis, "z-genuine", "m", TOKEN)
    await runs.read()
    await forge(redis, "a", "b")
    assert await names(runs) == ["z-genuine", "a", "b"]


async def test_a_forged_announcement_replaces_no_signed_one(redis: Redis) -> None:
    runs = AnnouncedRuns(redis, TOKEN)
    await announce(redis, "run", "model", TOKEN)
    await runs.read()
    forged = RunAnnouncement(run="run", model="another", renewed_at=time.time())
    for content in (forged.model_dump_json(), "junk", "x" * (1 << 20)):
        await redis.hset(RUNS_KEY, "run", content)  # type: ignore[misc]
        assert [line.model for line in await runs.read()] == ["model"]
    await withdraw(redis, "run")
    assert await runs.read() == []


async def test_no_field_of_a_signed_announcement_can_be_changed(redis: Redis) -> None:
    signed = RunAnnouncement(run="run", model="m", renewed_at=time.time()).signed(TOKEN)
    assert signed.is_signed(TOKEN)
    for change in ({"run": "other"}, {"model": "n"}, {"renewed_at": signed.renewed_at + 1}):
        assert not signed.model_copy(update=change).is_signed(TOKEN)
    assert not signed.is_signed(SecretStr(""))
    assert not RunAnnouncement(run="run", model="m", renewed_at=1.0).is_signed(SecretStr(""))


async def test_announcements_of_vanished_runs_are_removed(redis: Redis) -> None:
    await announce(redis, "run", "m")
    await forge(redis, "vanished", age_s=LEFTOVER_S + 1)
    await redis.hset(RUNS_KEY, "junk", "{")  # type: ignore[misc]
    await sweep(redis)
    assert await redis.hkeys(RUNS_KEY) == [b"run"]  # type: ignore[misc]


async def test_a_run_that_announces_itself_beside_a_sweep_stays(redis: Redis) -> None:
    for _ in range(30):
        await redis.hset(RUNS_KEY, "run", "{")  # type: ignore[misc]
        await asyncio.gather(*(sweep(redis) for _ in range(4)), announce(redis, "run", "m"))
        assert await redis.hkeys(RUNS_KEY) == [b"run"]  # type: ignore[misc]
