"""A stage works on every announced run, and no entry, whatever it raises, ends a run or stays forever."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mor_core import stage as stage_module
from mor_core.errors import Unavailable
from mor_core.run_announcements import AnnouncedRuns, RunAnnouncement, announce, withdraw
from mor_core.settings import StageSettings
from mor_core.stage import RunStage, Stage
from mor_core.stored import UNREADABLE
from mor_core.stream_consumer import Entry
from mor_core.streams import Streams
from mor_core.tasks import stop
from mor_core.wire import DeadLetter, PromptRecord
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.core.records import prompt, rollout

pytestmark = pytest.mark.anyio

LEASE_S = 0.05
SLOTS = 4
Failing = Callable[[PromptRecord], None]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class NativePanic(BaseException):
    """Failure of a native extension: PyO3 raises one of this kind."""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry whose lease ends while a read blocks waits for the end of the read."""
    monkeypatch.setattr(stage_module, "_BLOCK_S", LEASE_S / 2)
    monkeypatch.setattr(stage_module, "MOST_DELIVERIES", 3)


@pytest.fixture
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as lines:
        yield lines


class RunCopy(RunStage[PromptRecord]):
    """Stage that sends a rollout for each prompt, unless ``fail`` raises."""

    stage, source, target = "rollout", "prompts", "rollouts"

    def __init__(self, run: str, redis: Redis, settings: StageSettings, fail: Failing) -> None:
        self.slots = asyncio.Semaphore(SLOTS)
        super().__init__(run, redis, settings, self.slots, batch=8, forward_timeout_s=0.2)
        self._fail = fail

    @property
    def free_slots(self) -> int:
        return self.slots._value

    async def process(self, entries: Sequence[Entry[PromptRecord]]) -> None:
        for entry in entries:
            self._fail(entry.record)
            await self.forward(entry, rollout(entry.record))


class Copy(Stage[PromptRecord]):
    def __init__(self, redis: Redis, fail: Failing, bound: int = 16) -> None:
        super().__init__(redis, watch_s=0.05)
        self._settings = StageSettings(lease_s=LEASE_S, stream_bound=bound)
        self._fail = fail
        self.opened: list[RunCopy] = []

    async def open(self, announcement: RunAnnouncement) -> RunCopy:
        self.opened.append(RunCopy(announcement.run, self._redis, self._settings, self._fail))
        return self.opened[-1]


@asynccontextmanager
async def working(stage: Copy) -> AsyncIterator[None]:
    task = asyncio.create_task(stage.work())
    try:
        yield
    finally:
        await stop([task])


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(400):
        if await condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail("not within 8 s")


async def letters(redis: Redis, streams: Streams) -> list[DeadLetter]:
    entries = await redis.xrange(streams.key("dead"))
    return [DeadLetter.model_validate_json(fields[b"record"]) for _, fields in entries]


def bad_fails(error: BaseException) -> Failing:
    def fail(record: PromptRecord) -> None:
        if record.group_id == "bad":
            raise error

    return fail


def never(record: PromptRecord) -> None:
    del record


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
    assert letter.attempts == stage_module.MOST_DELIVERIES + 1
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
