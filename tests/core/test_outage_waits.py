"""An outage is a wait: an entry waits as often as it takes, and no other waits with it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import pytest
from mor_core.metrics import TASK_RESTARTS
from mor_core.outage_waits import EntryWait, OutageWaits, StageWait, read_waits, tell
from mor_core.run_announcements import RunAnnouncement, announce
from mor_core.run_stage import MOST_DELIVERIES
from mor_core.server_clock import SERVER_CLOCK
from mor_core.settings import StageSettings
from mor_core.stream_consumer import Consumer, Entry
from mor_core.streams import Streams, key
from mor_core.tasks import stop
from mor_core.wire import PromptRecord
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tests.core.copying_stage import (
    Copy,
    RunCopy,
    eventually,
    letters,
    never,
    short_waits,  # noqa: F401 - a fixture
    working,
)
from tests.core.records import prompt, rollout

pytestmark = pytest.mark.anyio
LEASE_S = 1.0


class RunWaiting(RunCopy):
    """Stage in which the group ``bad`` waits, for as long as ``away`` is true."""

    away = True

    def __init__(self, run: str, redis: Redis, settings: StageSettings) -> None:
        super().__init__(run, redis, settings, never)
        self.seen: Counter[str] = Counter()

    async def process(self, entries: Sequence[Entry[PromptRecord]]) -> None:
        for entry in entries:
            self.seen[entry.record.group_id] += 1
            if entry.record.group_id == "bad" and self.away:
                await self.wait_for(entry, {"client": "no connection"}, 0.02)
            else:
                await self.forward(entry, rollout(entry.record))


class Waiting(Copy):
    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, never)
        self._settings = StageSettings(lease_s=LEASE_S, stream_bound=16)

    async def open(self, announcement: RunAnnouncement) -> RunCopy:
        self.opened.append(RunWaiting(announcement.run, self._redis, self._settings))
        return self.opened[-1]


def depth(streams: Streams, **wanted: int) -> Callable[[], Awaitable[bool]]:
    async def reached() -> bool:
        return {name: await streams.depth(name) for name in wanted} == wanted  # type: ignore[arg-type]

    return reached


async def test_an_entry_waits_more_often_than_it_may_fail_and_others_pass(redis: Redis, run_name: str) -> None:
    streams, stage = Streams(redis, run_name, bound=16), Waiting(redis)
    await streams.publish("prompts", prompt(run_name, "bad"), timeout_s=1)
    await announce(redis, run_name, "model")
    async with working(stage):
        for index in range(5):
            await streams.publish("prompts", prompt(run_name, f"g{index}"), timeout_s=1)
        await eventually(depth(streams, prompts=1, rollouts=5, dead=0))
        [run] = stage.opened
        assert isinstance(run, RunWaiting)

        async def tried_often() -> bool:
            return run.seen["bad"] > MOST_DELIVERIES + 2

        await eventually(tried_often)
        assert all(run.seen[f"g{index}"] == 1 for index in range(5))
        told: list[StageWait] = []

        async def is_told() -> bool:
            told[:] = await read_waits(redis, run_name)
            return bool(told)

        await eventually(is_told)
        [wait] = told
        assert (wait.stage, wait.groups, wait.missing) == ("rollout", 1, {"client": "no connection"})
        run.away = False
        await eventually(depth(streams, prompts=0, rollouts=6, dead=0))
        assert run.waits.summary() is None


async def test_a_wait_that_cannot_be_told_ends_no_work(
    redis: Redis, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is no text that the queue server could take; the task that tells it starts again by itself."""
    monkeypatch.setattr("mor_core.run_stage.TELL_S", 0.02)
    streams, stage = Streams(redis, run_name, bound=16), Waiting(redis)
    restarts = TASK_RESTARTS.labels("RunStage._keep_telling")._value
    before = restarts.get()

    async def is_open() -> bool:
        return bool(stage.opened)

    async def has_failed() -> bool:
        return bool(restarts.get() > before)

    await announce(redis, run_name, "model")
    async with working(stage):
        await eventually(is_open)
        stage.opened[0].waits.blocked = {"client": "\ud800"}
        await eventually(has_failed)
        await streams.publish("prompts", prompt(run_name, "g"), timeout_s=1)
        await eventually(depth(streams, prompts=0, rollouts=1))
    assert len(stage.opened) == 1, "the work on the run did not start again"


class RunSlow(RunCopy):
    """Stage in which each entry waits once, and then takes half a second."""

    seen = 0

    async def process(self, entries: Sequence[Entry[PromptRecord]]) -> None:
        for entry in entries:
            self.seen += 1
            if self.seen == 1:
                await self.wait_for(entry, {"client": "no connection"}, 0.02)
            else:
                await asyncio.sleep(0.5)
                await self.forward(entry, rollout(entry.record))


async def test_reads_are_seldom_while_an_entry_that_waited_is_in_work(
    redis: Redis, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mor_core.run_stage._BLOCK_S", 0.1)
    streams = Streams(redis, run_name, bound=16)
    await streams.publish("prompts", prompt(run_name, "g"), timeout_s=1)
    settings = StageSettings(lease_s=LEASE_S, stream_bound=16)
    before = (await redis.info("commandstats")).get("cmdstat_xautoclaim", {"calls": 0})["calls"]
    run = RunSlow(run_name, redis, settings, never)
    work = asyncio.create_task(run.work())
    await eventually(depth(streams, prompts=0, rollouts=1))
    await stop([work])
    reads = (await redis.info("commandstats"))["cmdstat_xautoclaim"]["calls"] - before
    assert run.seen == 2
    assert reads < 15, "each may block for 0.1 s"


async def test_an_entry_that_waits_goes_on_in_another_process(redis: Redis, run_name: str) -> None:
    """Also when its process was killed, and at once when that ended in order."""
    streams = Streams(redis, run_name, bound=16)
    await streams.publish("prompts", prompt(run_name, "g"), timeout_s=1)
    for ends_in_order in (False, True):
        holder: Consumer[PromptRecord] = Consumer(streams, "prompts", "rollout", LEASE_S)
        [entry] = await holder.read(1, 0.01) or await holder.read(1, 0.01)  # the first one creates the group
        assert entry.deliveries == 1, "the pauses before did not count"
        await holder.postpone(entry, 0.1 if not ends_in_order else LEASE_S)
        if ends_in_order:
            await holder.__aexit__(None, None, None)
        await asyncio.sleep(0 if ends_in_order else 0.15)
    other: Consumer[PromptRecord] = Consumer(streams, "prompts", "rollout", LEASE_S)
    assert len(await other.read(1, 0.01)) == 1


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (RedisConnectionError("no connection"), True),
        (ResponseError("MISCONF Redis is configured to save snapshots, but it cannot"), True),
        (ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), False),
    ],
)
async def test_only_an_outage_of_the_queue_server_costs_no_delivery(
    redis: Redis, run_name: str, error: Exception, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mor_core.run_stage._PAUSE_S", 0.02)
    failures = 0

    def fail(record: PromptRecord) -> None:
        nonlocal failures
        failures += 1
        if failures <= 2 * MOST_DELIVERIES:
            raise error

    streams, stage = Streams(redis, run_name, bound=16), Copy(redis, fail)
    await streams.publish("prompts", prompt(run_name, "g"), timeout_s=1)
    await announce(redis, run_name, "model")
    async with working(stage):
        await eventually(depth(streams, prompts=0, rollouts=int(waits), dead=int(not waits)))
    assert [letter.group_id for letter in await letters(redis, streams)] == ([] if waits else ["g"])


async def test_lines_that_are_old_or_unreadable_do_not_count(redis: Redis, run_name: str) -> None:
    await SERVER_CLOCK.read(redis)
    line = StageWait(stage="router", groups=1, missing={"a": "away"}, renewed_at=SERVER_CLOCK.now())
    await tell(redis, run_name, "now", line)
    await tell(redis, run_name, "old", line.model_copy(update={"renewed_at": line.renewed_at - 60}))
    await redis.hset(key(run_name, "waits"), "forged", b"{}")
    assert await read_waits(redis, run_name) == [line]
    assert 0 < await redis.ttl(key(run_name, "waits")) <= 60
    await tell(redis, run_name, "now", None)
    assert await read_waits(redis, run_name) == []


def test_what_waits_takes_a_bounded_place() -> None:
    waits = OutageWaits("router", forget_after_s=30, most=4)
    for index in range(100):
        waits.add(f"{index}", EntryWait(missing={f"client {index}": "x" * 10_000}, due_at=1e12))
    assert waits.groups == 4
    summary = waits.summary()
    assert summary is not None
    assert len(summary.model_dump_json()) < 2000
    assert waits.end_pauses({"client 99"}) == ["99"]
    assert waits.due_in_s is not None
    assert waits.due_in_s < 0.1
