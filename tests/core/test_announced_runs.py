"""Whatever is announced, a stage works on the runs of workers and goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from mor_core import stage as stage_module
from mor_core.run_announcements import AnnouncedRuns, announce
from mor_core.stored import UNREADABLE
from mor_core.streams import Streams
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.core.copying_stage import (
    Copy,
    eventually,
    never,
    short_waits,  # noqa: F401 - a fixture
    working,
)
from tests.core.records import prompt

pytestmark = pytest.mark.anyio


@pytest.fixture
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as lines:
        yield lines


def announced(run: str, renewed_at: object) -> bytes:
    return json.dumps({"run": run, "model": "m", "renewed_at": renewed_at}).encode()


FORGED = {
    b"a": b"{",
    b"b": b'{"run": "b"}',
    b"\xff": b"\xff",
    b"c": b"[" * 9999,
    b"d": announced("d", float("inf")),
    b"e": announced("e", time.time() + 3600),
    b"f": announced("f", 1e400),
    b"../g": announced("../g", time.time()),
    b"h": announced("other", time.time()),
    b"i": b" " * (1 << 20),
}


async def test_an_announcement_that_does_not_fit_stops_no_run(
    redis: Redis, run_name: str, logged: list[MutableMapping[str, Any]]
) -> None:
    """Each is counted at every look, and logged once."""
    streams, stage = Streams(redis, run_name, bound=16), Copy(redis, never)
    before = UNREADABLE.labels("runs")._value.get()
    for name, value in FORGED.items():
        await redis.hset("mor:runs", name, value)  # type: ignore[misc]
    async with working(stage):
        await streams.publish("prompts", prompt(run_name, "g"), timeout_s=1)
        await announce(redis, run_name, "model")

        async def through() -> bool:
            return await streams.depth("rollouts") == 1

        await eventually(through)
        assert stage.runs == [run_name]
        assert stage.problem is None
    assert UNREADABLE.labels("runs")._value.get() >= before + len(FORGED)
    skipped = [line["entry"] for line in logged if line.get("store") == "runs"]
    assert len(skipped) == len(set(skipped)) <= len(FORGED)


async def test_announcements_of_another_type_are_told_and_read_again(redis: Redis, run_name: str) -> None:
    stage = Copy(redis, never)
    await redis.set("mor:runs", "x")
    async with working(stage):

        async def told() -> bool:
            return "WRONGTYPE" in str(stage.problem)

        await eventually(told)
        await redis.delete("mor:runs")
        await announce(redis, run_name, "model")

        async def works() -> bool:
            return stage.runs == [run_name] and stage.problem is None

        await eventually(works)


async def test_runs_in_work_stay_when_too_many_are_announced(
    redis: Redis, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "_MOST_RUNS", 5)
    stage = Copy(redis, never)
    await announce(redis, run_name, "model")
    async with working(stage):

        async def begun() -> bool:
            return stage.runs == [run_name]

        await eventually(begun)
        await redis.hset("mor:runs", mapping={f"a{n}": announced(f"a{n}", time.time()) for n in range(2000)})  # type: ignore[misc]

        async def full() -> bool:
            return len(stage.runs) == 5

        await eventually(full)
        assert run_name in stage.runs


async def test_forged_announcements_displace_no_run_of_a_worker(
    redis: Redis, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signed announcement takes a place from unsigned ones that were there before."""
    monkeypatch.setattr(stage_module, "_MOST_RUNS", 4)
    token, stage = SecretStr("service-token"), Copy(redis, lambda _: None)
    stage._announced = AnnouncedRuns(redis, token)
    for number in range(12):
        await announce(redis, f"a{number}", "model")
    async with working(stage):

        async def crowded() -> bool:
            return len(stage.runs) == 4

        await eventually(crowded)
        streams = Streams(redis, run_name, bound=16)
        await streams.publish("prompts", prompt(run_name, "g"), timeout_s=1)
        await announce(redis, run_name, "model", token)

        async def through() -> bool:
            return await streams.depth("rollouts") == 1

        await eventually(through)
        assert len(stage.runs) == 4
        assert run_name in stage.runs
