"""A stage works on every announced run, and no entry, whatever it raises, ends a run or stays forever."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence

import pytest
from mor_core import run_stage
from mor_core.errors import Unavailable
from mor_core.run_announcements import RunAnnouncement, announce, withdraw
from mor_core.settings import StageSettings
from mor_core.stream_consumer import Entry
from mor_core.streams import Streams
from mor_core.wire import PromptRecord
from redis.asyncio import Redis

from tests.core.copying_stage import (
    LEASE_S,
    SLOTS,
    Copy,
    Failing,
    RunCopy,
    eventually,
    letters,
    never,
    short_waits,  # noqa: F401 - a fixture
    working,
)
from tests.core.records import prompt

pytestmark = pytest.mark.anyio


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class NativePanic(BaseException):
    """Failure of a native extension: PyO3 raises one of this kind."""


def bad_fails(error: BaseException) -> Failing:
    def fail(record: PromptRecord) -> None:
        if record.group_id == "bad":
            raise error

    return fail


async def test_a_run_is_worked_on_while_it_is_announced(redis: Redis, run_name: str) -> None:
    streams, stage = Streams(redis, run_name, bound=16), Copy(redis, never)
    async with working(stage):
        for index in range(5):
            await streams.publish("prompts", prompt(run_name, f"g{index}"), timeout_s=1)
        await announce(redis, run_name, "model")

        async def all_through() -> bool:
            return await streams.depth("rollouts") == 5 and await streams.depth("prompts") == 0

        await eventually(all_through)
        assert stage.runs == [run_name]
        await withdraw(redis, run_name)

        async def idle() -> bool:
            return not stage.runs

        await eventually(idle)


FAILURES = [
    ValueError("a template"),
    StopIteration(),
    MemoryError(),
    Unavailable("no"),
    Unprintable(),
    OSError("no file half-\udcff.png"),
    ExceptionGroup("two", [ValueError("a template")]),
    BaseExceptionGroup("two", [asyncio.CancelledError()]),
    asyncio.CancelledError("a library's own"),
    GeneratorExit(),
    SystemExit(3),
    NativePanic("index out of bounds"),
]


@pytest.mark.parametrize(
    ("error", "position"),
    [*((error, 4) for error in FAILURES), *((FAILURES[0], position) for position in (0, 7))],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
async def test_an_entry_that_always_fails_goes_to_the_dead_letters(
    redis: Redis, run_name: str, error: BaseException, position: int
) -> None:
    """All other groups come through meanwhile, also those of its batch, and the run's work goes on."""
    streams, stage = Streams(redis, run_name, bound=16), Copy(redis, bad_fails(error))
    for index in range(8):
        name = "bad" if index == position else f"g{index}"
        await streams.publish("prompts", prompt(run_name, name), timeout_s=1)
    await announce(redis, run_name, "model")
    async with working(stage):

        async def settled() -> bool:
            return await streams.depth("prompts") == 0

        await eventually(settled)
        [run] = stage.opened

        async def slots_are_free() -> bool:
            return run.free_slots >= SLOTS - 1  # the read that waits has one

        await eventually(slots_are_free)
    assert run.free_slots == SLOTS
    assert run._failures == {}
    [letter] = await letters(redis, streams)
    assert letter.group_id == "bad"
    assert letter.attempts == run_stage.MOST_DELIVERIES + 1
    assert ("RuntimeError" if isinstance(error, StopIteration) else type(error).__name__) in letter.reason
    rollouts = [json.loads(fields[b"record"])["group_id"] for _, fields in await redis.xrange(streams.key("rollouts"))]
    assert sorted(rollouts) == [f"g{index}" for index in range(8) if index != position]


@pytest.mark.parametrize("part", ["ready", "share"])
async def test_work_on_a_run_that_ends_by_an_exception_leaves_all_slots_free(
    redis: Redis, run_name: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = Streams(redis, run_name, bound=16)
    await redis.xgroup_create(streams.key("prompts"), RunCopy.stage, id="0", mkstream=True)
    await streams.publish("prompts", prompt(run_name, "g"), timeout_s=1)
    run = RunCopy(run_name, redis, StageSettings(lease_s=LEASE_S, stream_bound=16), never)
    calls = 0

    def broken() -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyError(part)
        return 2

    async def broken_wait() -> None:
        broken()

    monkeypatch.setattr(run, part, broken_wait if part == "ready" else broken)
    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        await run.work()
    await asyncio.sleep(0.01)
    assert run.free_slots == SLOTS


async def test_an_attempt_that_hangs_is_ended_and_given_up_in_the_end(
    redis: Redis, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The groups beside it pass."""
    process = RunCopy.process

    async def hanging(self: RunCopy, entries: Sequence[Entry[PromptRecord]]) -> None:
        if any(entry.record.group_id == "bad" for entry in entries):
            await asyncio.Event().wait()
        await process(self, entries)

    monkeypatch.setattr(RunCopy, "process", hanging)
    streams, stage = Streams(redis, run_name, bound=16), Copy(redis, never)
    stage._settings = stage._settings.model_copy(update={"attempt_timeout_s": 0.1})
    await announce(redis, run_name, "model")
    async with working(stage):
        for name in ("bad", "good"):
            await streams.publish("prompts", prompt(run_name, name), timeout_s=1)

        async def settled() -> bool:
            return await streams.depth("rollouts") == 1 and await streams.depth("dead") == 1

        await eventually(settled)
    [letter] = await letters(redis, streams)
    assert letter.group_id == "bad"
    assert "MOR_ATTEMPT_TIMEOUT_S" in letter.reason


async def test_a_run_that_cannot_be_opened_is_tried_ever_more_rarely(
    redis: Redis, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, tries = Copy(redis, never), []

    async def refuse(announcement: RunAnnouncement) -> RunCopy:
        tries.append(time.monotonic())
        raise Unavailable("no such model")

    monkeypatch.setattr(stage, "open", refuse)
    await announce(redis, run_name, "model")
    async with working(stage):

        async def tried() -> bool:
            return len(tries) == 5

        await eventually(tried)
    waits = [second - first for first, second in itertools.pairwise(tries)]
    assert waits[-1] > 0.2 > waits[0], waits  # means of 0.05, 0.1, 0.2 and 0.4 s, with the time between two looks


async def test_a_run_that_cannot_be_opened_stops_no_other(
    redis: Redis, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, stage = Streams(redis, run_name, bound=16), Copy(redis, never)
    make = stage.open

    async def choosy(announcement: RunAnnouncement) -> RunCopy:
        if announcement.run == "broken":
            raise NativePanic("no such model")
        return await make(announcement)

    monkeypatch.setattr(stage, "open", choosy)
    async with working(stage):
        await announce(redis, "broken", "model")
        await asyncio.sleep(0.2)
        await streams.publish("prompts", prompt(run_name, "g"), timeout_s=1)
        await announce(redis, run_name, "model")

        async def through() -> bool:
            return await streams.depth("rollouts") == 1

        await eventually(through)


async def test_full_dead_letters_hold_up_only_the_entry_that_goes_there(redis: Redis, run_name: str) -> None:
    streams = Streams(redis, run_name, bound=4)
    for _ in range(4):
        await redis.xadd(streams.key("dead"), {"record": "a letter"})
    await redis.xadd(streams.key("prompts"), {"record": "no prompt"})
    for index in range(3):
        await streams.publish("prompts", prompt(run_name, f"g{index}"), timeout_s=1)
    await announce(redis, run_name, "model")
    async with working(Copy(redis, never, bound=4)):

        async def one_waits() -> bool:
            return await streams.depth("rollouts") == 3 and await streams.depth("prompts") == 1

        await eventually(one_waits)
        await redis.xtrim(streams.key("dead"), maxlen=0, approximate=False)

        async def settled() -> bool:
            return await streams.depth("prompts") == 0 and await streams.depth("dead") == 1

        await eventually(settled)


async def test_entries_wait_while_the_next_stream_is_full(redis: Redis, run_name: str) -> None:
    """They wait longer than the bounded number of deliveries takes."""
    streams = Streams(redis, run_name, bound=16)
    async with working(Copy(redis, never, bound=2)):
        for index in range(3):
            await streams.publish("prompts", prompt(run_name, f"g{index}"), timeout_s=1)
        await announce(redis, run_name, "model")

        async def full() -> bool:
            return await streams.depth("rollouts") == 2

        await eventually(full)
        await asyncio.sleep(5 * (0.2 + 2 * LEASE_S))
        assert await letters(redis, streams) == []
        await redis.xtrim(streams.key("rollouts"), maxlen=0, approximate=False)

        async def all_through() -> bool:
            return await streams.depth("prompts") == 0 and await streams.depth("rollouts") == 1

        await eventually(all_through)
    assert await letters(redis, streams) == []
