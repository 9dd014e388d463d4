"""No key of a run outlives it on the queue server, and none of a run at work is deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path

import pytest
from mor_core.blobs import INLINE_BYTES, Blobs
from mor_core.fence import Fence
from mor_core.run_announcements import announce
from mor_core.run_keys import delete_run_keys
from mor_core.runs import Heartbeat, RunSpec, RunState
from mor_core.stream_consumer import Consumer
from mor_core.streams import GROUP_STREAMS, RECORD_TYPES, Streams
from mor_core.wire import EventRecord
from mor_trainer.config import ControlSettings
from mor_trainer.control import run_key_sweeper
from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.database import Database
from mor_trainer.control.dead_letter_store import DeadLetterStore
from mor_trainer.control.history import History
from mor_trainer.control.ingest import Ingest, Watchers
from mor_trainer.control.run_guards import RunGuards
from mor_trainer.control.run_key_sweeper import RunKeySweeper
from mor_trainer.control.run_store import RunStore
from mor_trainer.groups.flush_detector import FlushDetector
from mor_trainer.trackers import Trackers
from redis.asyncio import Redis

from tests.core.records import prompt

pytestmark = pytest.mark.anyio
SPEC = RunSpec(name="tiny", model="/m", prompts="/p")
LEASE_S = 0.3


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database.of_file(tmp_path / "history.sqlite3")
    yield opened
    opened.close()


@pytest.fixture
def runs(database: Database) -> RunStore:
    return RunStore(database, AlertStore(database, webhook=False), DeadLetterStore(database, 10), lease_s=LEASE_S)


async def fill(redis: Redis, run: str, attempt: int = 1, *, announced: bool = True) -> None:
    """Write every kind of key that a run has, and its announcement."""
    fence = Fence(run, attempt)
    streams = Streams(redis, run, 100, fence)
    await FlushDetector(redis, fence).check()
    for name in GROUP_STREAMS:
        await Consumer(streams, name, "trainer", 60).read(1, 0.01)  # makes the key and its consumer group
    await streams.publish("prompts", prompt(run), timeout_s=1)
    await Consumer(streams, "events", "trainer", 60).read(1, 0.01)
    for number in range(5):
        await Blobs(redis, run, None, fence).put(b"picture %d" % number, f"g{number % 2}")
    if announced:
        await announce(redis, run, "/m", fence=fence)
    assert len(await keys(redis, run)) == len(RECORD_TYPES) + 2 + 5 + 5 + 2 + announced


async def keys(redis: Redis, run: str) -> list[str]:
    """List everything on the server with the name of a run."""
    found = [name.decode() for name in await redis.keys() if f"{{{run}}}" in name.decode()]
    return found + [f"mor:runs {name.decode()}" for name in await redis.hkeys("mor:runs") if name.decode() == run]


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(1500):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen in 30 s")


ENDS = ["finished", "failed", "stopped", "stopped while queued", "the worker died", "unreadable"]


async def test_every_end_of_a_run_leaves_no_key(
    redis: Redis, redis_url: str, database: Database, runs: RunStore, tmp_path: Path
) -> None:
    settings = ControlSettings.model_validate(
        {"runs_dir": tmp_path, "redis_url": redis_url, "blob_dir": str(tmp_path / "blobs"), "tokens_file": None}
    )
    alerts, letters = AlertStore(database, webhook=False), DeadLetterStore(database, 10)
    history = History(database, runs, alerts, letters, samples_kept=1, events_kept=100)
    made = {end: runs.create(SPEC) for end in ENDS}
    active = runs.create(SPEC)
    for run in (*made.values(), active):
        await fill(redis, run)
        await Blobs(redis, run, settings.blob_dir).put(bytes(INLINE_BYTES + 1), "g1")
    for end, run in made.items():
        claim = runs.claim("w")
        assert claim is not None
        assert claim.run == run
        match end:
            case "finished" | "failed" | "stopped":
                runs.beat(run, Heartbeat(attempt=1, state=RunState(end)))
            case "stopped while queued":  # after its worker handed it back, and before another one claims it
                runs.beat(run, Heartbeat(attempt=1, state=RunState.queued))
                runs.request(run, "stop")
            case "the worker died":
                runs.request(run, "stop")  # its lease ends later
            case "unreadable":
                database.write("UPDATE runs SET spec='{' WHERE id=:id", id=run)
    await redis.hset("mor:{router}:clients", "clinic", "{}")
    of_active = await keys(redis, active)
    files = list((tmp_path / "blobs" / active).rglob("*"))
    sweeper = RunKeySweeper(redis, runs, linger_s=0.5)

    async def gone() -> bool:
        await sweeper.sweep()
        return not any([await keys(redis, run) for run in made.values()])

    await redis.hdel("mor:runs", made["unreadable"])  # its worker is refused, and announces it no more
    guards = RunGuards(tmp_path, database, runs, alerts)
    trackers = Trackers([], lambda *_: None, 1)
    ingest = Ingest(settings, runs, history, Watchers(1), trackers, guards=guards, redis=redis, linger_s=0.5)
    async with ingest.running():
        await eventually(gone)
    assert sorted(await keys(redis, active)) == sorted(of_active)
    assert await redis.exists("mor:{router}:clients")
    kept = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert {path for path in kept if made["unreadable"] not in path.parts} <= {*files}


async def test_a_run_control_that_starts_and_is_killed_makes_no_key_of_a_run_that_is_over(
    redis: Redis, redis_url: str, database: Database, runs: RunStore, tmp_path: Path
) -> None:
    """It reads late events of runs that ended within the hour; the stream it reads must not be made by reading."""
    settings = ControlSettings.model_validate({"runs_dir": tmp_path, "redis_url": redis_url, "tokens_file": None})
    alerts, letters = AlertStore(database, webhook=False), DeadLetterStore(database, 10)
    history = History(database, runs, alerts, letters, samples_kept=1, events_kept=100)
    run = runs.create(SPEC)
    runs.request(run, "stop")
    guards = RunGuards(tmp_path, database, runs, alerts)
    ingest = Ingest(settings, runs, history, Watchers(1), Trackers([], lambda *_: None, 1), guards=guards, redis=redis)
    async with ingest.running():
        await eventually(lambda: _is_read(ingest, run))
        await asyncio.sleep(0.3)
        assert await keys(redis, run) == []
        late = EventRecord(run=run, group_id="000000-00000001", kind="state", step=0, data={}, stamps={"trainer": 1.0})
        await Streams(redis, run, 10).publish("events", late, timeout_s=1)
        await eventually(lambda: _is_empty(redis, run))


async def _is_read(ingest: Ingest, run: str) -> bool:
    return run in ingest._readers


async def _is_empty(redis: Redis, run: str) -> bool:
    return not await Streams(redis, run, 10).depth("events")


async def test_keys_of_an_unknown_run_go_after_the_grace_and_never_while_it_is_announced(
    redis: Redis, runs: RunStore
) -> None:
    """As for a run control that was restored from a backup and knows fewer runs."""
    await fill(redis, "announced-1")
    await fill(redis, "vanished-1", announced=False)
    await redis.set("mor:{vanished-1}:of-another-application", "x")
    await redis.set("mor:{router}:events", "x")
    await redis.set("another:{vanished-1}:blob:x", "x")
    sweeper = RunKeySweeper(redis, runs, grace_s=0.3)
    assert await sweeper.sweep() == []
    assert await RunKeySweeper(redis, runs).sweep() == [], "a new process waits anew"
    await asyncio.sleep(0.35)
    assert await sweeper.sweep() == ["vanished-1"]
    assert sorted(await keys(redis, "vanished-1")) == [
        "another:{vanished-1}:blob:x", "mor:{vanished-1}:of-another-application",
    ]  # fmt: skip
    assert await redis.exists("mor:{router}:events")
    count = len(await keys(redis, "announced-1"))
    await redis.hdel("mor:runs", "announced-1")
    assert await sweeper.sweep() == [], "the grace begins when nobody announces it any more"
    assert len(await keys(redis, "announced-1")) == count - 1
    await asyncio.sleep(0.35)
    assert await sweeper.sweep() == ["announced-1"]
    assert await keys(redis, "announced-1") == []


async def test_an_announcement_of_a_later_release_keeps_its_run(redis: Redis, runs: RunStore) -> None:
    await fill(redis, "later-1", announced=False)
    await redis.hset("mor:runs", "later-1", '{"form": "of a later release"}')
    count = len(await keys(redis, "later-1"))
    assert await RunKeySweeper(redis, runs, grace_s=0).sweep() == []
    assert len(await keys(redis, "later-1")) == count


async def test_a_run_that_is_queued_again_and_never_claimed_keeps_its_events_and_its_attempt(
    redis: Redis, runs: RunStore
) -> None:
    run = runs.create(SPEC)
    claim = runs.claim("w")
    assert claim is not None
    await fill(redis, run, announced=False)
    sweeper = RunKeySweeper(redis, runs, idle_s=0.2, grace_s=0)
    count = len(await keys(redis, run))
    assert await sweeper.sweep() == []
    await asyncio.sleep(LEASE_S)
    assert runs.requeue_lost() == [run]
    assert await sweeper.sweep() == []
    assert len(await keys(redis, run)) == count
    await asyncio.sleep(0.25)
    assert await sweeper.sweep() == [run]
    assert sorted(await keys(redis, run)) == [f"mor:{{{run}}}:attempt", f"mor:{{{run}}}:events"]
    assert await sweeper.sweep() == [], "it has nothing to tell again"


async def test_a_run_that_is_claimed_during_a_sweep_keeps_its_keys(
    redis: Redis, runs: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [runs.create(SPEC), runs.create(SPEC)]
    for run in made:
        await fill(redis, run, announced=False)
    before = {run: await keys(redis, run) for run in made}
    deleted: list[str] = []

    async def delete(redis: Redis, run: str, *, keep: Collection[str]) -> int:
        deleted.append(run)
        while (claim := runs.claim("w")) is not None:
            assert claim.run in made
        return await delete_run_keys(redis, run, keep=keep)

    monkeypatch.setattr(run_key_sweeper, "delete_run_keys", delete)
    assert await RunKeySweeper(redis, runs, idle_s=0).sweep() == deleted
    [kept] = {*made} - {*deleted}
    assert sorted(await keys(redis, kept)) == sorted(before[kept])
