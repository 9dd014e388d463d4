"""A stage works on every announced run, and no entry, whatever it raises, ends a run or stays forever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from mor_core import stage as stage_module
from mor_core.errors import Unavailable
from mor_core.settings import StreamSettings
from mor_core.stage import MOST_DELIVERIES, RunStage, Stage
from mor_core.streams import Entry, RunAnnouncement, Streams, announce, withdraw
from mor_core.tasks import stop
from mor_core.wire import DeadLetter, PromptRecord
from redis.asyncio import Redis

from tests.core.records import prompt, rollout

pytestmark = pytest.mark.anyio

LEASE_S = 0.1
Failing = Callable[[PromptRecord], None]


@pytest.fixture(autouse=True)
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry whose lease ends while a read blocks waits for the end of the read."""
    monkeypatch.setattr(stage_module, "_BLOCK_S", LEASE_S / 2)


class RunCopy(RunStage[PromptRecord]):
    """Stage that sends a rollout for each prompt, unless ``fail`` raises."""

    stage, source, target = "rollout", "prompts", "rollouts"

    def __init__(self, run: str, redis: Redis, settings: StreamSettings, fail: Failing) -> None:
        super().__init__(run, redis, settings, asyncio.Semaphore(4), batch=2, forward_timeout_s=0.2)
        self._fail = fail

    async def process(self, entries: Sequence[Entry[PromptRecord]]) -> None:
        for entry in entries:
            self._fail(entry.record)
            await self.forward(entry, rollout(entry.record))


class Copy(Stage[PromptRecord]):
    def __init__(self, redis: Redis, fail: Failing, bound: int = 16) -> None:
        super().__init__(redis, watch_s=0.05)
        self._settings = StreamSettings(lease_s=LEASE_S, stream_bound=bound)
        self._fail = fail

    async def open(self, announcement: RunAnnouncement) -> RunCopy:
        return RunCopy(announcement.run, self._redis, self._settings, self._fail)


@asynccontextmanager
async def working(stage: Copy) -> AsyncIterator[None]:
    task = asyncio.create_task(stage.work())
    try:
        yield
    finally:
        await stop([task])


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(1500):
        if await condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail("not within 30 s")


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


@pytest.mark.parametrize("error", [ValueError("a template"), MemoryError(), Unavailable("no")])
async def test_an_entry_that_always_fails_goes_to_the_dead_letters(
    redis: Redis, run_name: str, error: Exception
) -> None:
    """All other groups come through meanwhile, also those of its batch."""
    streams = Streams(redis, run_name, bound=16)
    async with working(Copy(redis, bad_fails(error))):
        for name in ("g0", "g1", "bad", "g2", "g3"):
            await streams.publish("prompts", prompt(run_name, name), timeout_s=1)
        await announce(redis, run_name, "model")

        async def settled() -> bool:
            return await streams.depth("prompts") == 0

        await eventually(settled)
    [letter] = await letters(redis, streams)
    assert letter.group_id == "bad"
    assert letter.attempts == MOST_DELIVERIES + 1
    assert type(error).__name__ in letter.reason
    assert await streams.depth("rollouts") == 4


async def test_entries_wait_while_the_next_stream_is_full(
    redis: Redis, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait longer than the bounded number of deliveries takes."""
    monkeypatch.setattr(stage_module, "MOST_DELIVERIES", 2)
    streams = Streams(redis, run_name, bound=16)
    async with working(Copy(redis, never, bound=2)):
        for index in range(3):
            await streams.publish("prompts", prompt(run_name, f"g{index}"), timeout_s=1)
        await announce(redis, run_name, "model")

        async def full() -> bool:
            return await streams.depth("rollouts") == 2

        await eventually(full)
        await asyncio.sleep(4 * (0.2 + 2 * LEASE_S))
        assert await letters(redis, streams) == []
        await redis.xtrim(streams.key("rollouts"), maxlen=0, approximate=False)

        async def all_through() -> bool:
            return await streams.depth("prompts") == 0 and await streams.depth("rollouts") == 1

        await eventually(all_through)
    assert await letters(redis, streams) == []
