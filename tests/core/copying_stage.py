"""Stage that sends a rollout for each prompt, with leases and waits short enough for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from mor_core import run_stage
from mor_core.run_announcements import RunAnnouncement
from mor_core.run_stage import RunStage
from mor_core.settings import StageSettings
from mor_core.stage import Stage
from mor_core.stream_consumer import Entry
from mor_core.streams import Streams
from mor_core.tasks import stop
from mor_core.wire import DeadLetter, PromptRecord
from redis.asyncio import Redis

from tests.core.records import rollout

LEASE_S = 0.05
SLOTS = 4
Failing = Callable[[PromptRecord], None]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry whose lease ends while a read blocks waits for the end of the read."""
    monkeypatch.setattr(run_stage, "_BLOCK_S", LEASE_S / 2)
    monkeypatch.setattr(run_stage, "MOST_DELIVERIES", 3)


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


def never(record: PromptRecord) -> None:
    del record
