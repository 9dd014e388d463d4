"""Streams forward each record once, wait when full, and lose nothing when a consumer dies."""

from __future__ import annotations

import asyncio
import time

import pytest
from mor_core import streams
from mor_core.blobs import Blobs
from mor_core.errors import LeaseLost, StreamFull
from mor_core.settings import StreamSettings
from mor_core.stored import LEFTOVER_S
from mor_core.stream_consumer import Consumer, Entry
from mor_core.streams import Backlog, Streams
from mor_core.wire import PromptRecord, RolloutRecord
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.conftest import Valkey
from tests.core.records import prompt, rollout

pytestmark = pytest.mark.anyio


def consumer(side: Streams, lease_s: float = 30.0) -> Consumer[PromptRecord]:
    return Consumer(side, "prompts", "rollout", lease_s)


def stand_still(seconds: float) -> None:
    """Block the event loop, so that nothing renews a lease."""
    time.sleep(seconds)


async def test_a_record_arrives_as_it_was_sent(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=4)
    reader = consumer(side)
    await side.publish("prompts", prompt(run_name), timeout_s=1)
    assert await reader.read(8, 0.01) == []  # the first read makes the consumer group
    [entry] = await reader.read(8, 1)
    assert entry.record == prompt(run_name)
    assert entry.deliveries == 1


async def test_the_backlog_counts_what_is_not_settled_and_how_old_it_is(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=4)
    reader = consumer(side)
    assert await side.backlog("prompts") == Backlog(0, 0.0)
    for _ in range(2):
        await side.publish("prompts", prompt(run_name), timeout_s=1)
    await reader.read(1, 0.01)
    [entry] = await reader.read(1, 1)
    await asyncio.sleep(0.05)
    held = await side.backlog("prompts")
    assert held.entries == 2
    assert held.oldest_s >= 0.05
    await reader.settle(entry)
    assert (await side.backlog("prompts")).entries == 1


async def test_forward_settles_the_entry_and_writes_its_successor(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=4)
    reader = consumer(side)
    await side.publish("prompts", prompt(run_name), timeout_s=1)
    await reader.read(1, 0.01)
    [entry] = await reader.read(1, 1)
    await reader.forward(entry, "rollouts", rollout(entry.record), timeout_s=1)
    assert await side.depth("prompts") == 0
    assert await side.depth("rollouts") == 1


async def test_two_consumers_of_one_entry_forward_it_once(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=4)
    slow, heir = consumer(side, lease_s=0.05), consumer(side, lease_s=0.05)
    await side.publish("prompts", prompt(run_name), timeout_s=1)
    await slow.read(1, 0.01)
    [held] = await slow.read(1, 1)
    await asyncio.sleep(0.1)
    [claimed] = await heir.read(1, 1)
    assert claimed.deliveries == 2
    await heir.forward(claimed, "rollouts", rollout(claimed.record), timeout_s=1)
    with pytest.raises(LeaseLost, match="another consumer"):
        await slow.forward(held, "rollouts", rollout(held.record), timeout_s=1)
    assert await side.depth("rollouts") == 1


async def test_two_consumers_of_one_entry_bury_it_once(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=4)
    slow, other = consumer(side, lease_s=0.05), consumer(side, lease_s=0.05)
    await side.publish("prompts", prompt(run_name), timeout_s=1)
    await slow.read(1, 0.01)
    [entry] = await slow.read(1, 1)
    await asyncio.sleep(0.1)
    [taken] = await other.read(1, 0.01)
    assert await other.give_up(taken, "it does not fit")
    assert not await slow.give_up(entry, "it does not fit"), "there is one letter"
    assert await side.depth("dead") == 1


async def test_a_lease_that_is_kept_is_not_taken_over(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=4)
    worker, other = consumer(side, lease_s=0.3), consumer(side, lease_s=0.3)
    await side.publish("prompts", prompt(run_name), timeout_s=1)
    await worker.read(1, 0.01)
    [entry] = await worker.read(1, 1)
    async with worker.leased([entry]):
        await asyncio.sleep(0.7)
        assert await other.read(1, 0.01) == []
    await worker.settle(entry)
    assert await side.depth("prompts") == 0


async def test_a_consumer_whose_lease_ended_does_not_take_over_its_own_work(redis: Redis, run_name: str) -> None:
    """An event loop that stands still for longer than a lease must not start an entry a second time, nor count it."""
    side = Streams(redis, run_name, bound=4)
    reader = consumer(side, lease_s=0.1)
    await side.publish("prompts", prompt(run_name), timeout_s=1)
    await reader.read(1, 0.01)
    [entry] = await reader.read(1, 1)
    async with reader.leased([entry]):
        for _ in range(3):
            stand_still(0.15)
            assert await reader.read(1, 0.01) == []
    stand_still(0.15)
    [again] = await reader.read(1, 0.01)
    assert again.deliveries == 2


async def test_a_lease_is_renewed_again_after_the_server_was_away(valkey: Valkey, run_name: str) -> None:
    client = streams.connect(StreamSettings(redis_url=SecretStr(valkey.url)))
    client.set_retry(Retry(NoBackoff(), retries=0))
    side = Streams(client, run_name, bound=4)
    worker, other = consumer(side, lease_s=0.6), consumer(side, lease_s=0.6)
    await side.publish("prompts", prompt(run_name), timeout_s=1)
    await worker.read(1, 0.01)
    [entry] = await worker.read(1, 1)
    async with worker.leased([entry]):
        await asyncio.to_thread(valkey.write_out)
        valkey.kill()
        await asyncio.sleep(0.5)
        valkey.start()
        await asyncio.sleep(0.3)
        for _ in range(6):
            await asyncio.sleep(0.2)
            assert await other.read(1, 0.01) == []
    await worker.settle(entry)
    await client.aclose()


async def test_entries_of_a_consumer_that_ends_are_free_at_once(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=8)
    worker, other = consumer(side, lease_s=60), consumer(side, lease_s=60)
    await side.publish("prompts", prompt(run_name, "g1"), timeout_s=1)
    await side.publish("prompts", prompt(run_name, "g2"), timeout_s=1)
    await worker.read(1, 0.01)
    read = asyncio.Event()

    async def work() -> None:
        async with worker, asyncio.TaskGroup() as groups:
            (begun,) = await worker.read(1, 1)
            groups.create_task(keep(begun))
            await worker.read(1, 1)  # and not begun with
            read.set()
            await asyncio.sleep(60)

    async def keep(entry: Entry[PromptRecord]) -> None:
        async with worker.leased([entry]):
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.wait_for(read.wait(), 5)
    assert await other.read(2, 0.01) == []
    task.cancel()
    await asyncio.wait([task])
    taken = await other.read(2, 0.01)
    assert [(entry.record.group_id, entry.deliveries) for entry in taken] == [("g1", 2), ("g2", 2)]


async def test_a_full_stream_makes_its_producer_wait(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=1)
    reader = consumer(side)
    await side.publish("prompts", prompt(run_name, "g1"), timeout_s=1)
    with pytest.raises(StreamFull, match="is its consumer running"):
        await side.publish("prompts", prompt(run_name, "g2"), timeout_s=0.05)
    await reader.read(1, 0.01)
    [entry] = await reader.read(1, 1)
    waiting = asyncio.create_task(side.publish("prompts", prompt(run_name, "g2"), timeout_s=5))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await reader.settle(entry)
    await waiting
    assert await side.depth("prompts") == 1


async def test_forward_to_a_full_stream_keeps_the_entry(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=1)
    reader = consumer(side)
    await side.publish("prompts", prompt(run_name, "g1"), timeout_s=1)
    await side.publish("rollouts", rollout(prompt(run_name, "g0")), timeout_s=1)
    await reader.read(1, 0.01)
    [entry] = await reader.read(1, 1)
    with pytest.raises(StreamFull):
        await reader.forward(entry, "rollouts", rollout(entry.record), timeout_s=0.05)
    assert await side.depth("prompts") == 1


async def test_a_reason_with_half_a_character_gives_a_dead_letter(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=4)
    reader = consumer(side)
    await side.publish("prompts", prompt(run_name), timeout_s=1)
    await reader.read(1, 0.01)
    [entry] = await reader.read(1, 1)
    await reader.give_up(entry, str(FileNotFoundError(2, "No such file", "half-\udcff.png")))
    assert await side.depth("dead") == 1


async def test_giving_up_keeps_record_reason_and_identity(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=4)
    reader = consumer(side)
    await side.publish("prompts", prompt(run_name, "g7"), timeout_s=1)
    await reader.read(1, 0.01)
    [entry] = await reader.read(1, 1)
    await reader.give_up(entry, "the engine refused it", attempts=3)
    letters: Consumer[streams.DeadLetter] = Consumer(side, "dead", "trainer", 30)
    await letters.read(1, 0.01)
    [letter] = await letters.read(1, 1)
    assert (letter.record.group_id, letter.record.attempts) == ("g7", 3)
    assert PromptRecord.model_validate_json(letter.record.record) == entry.record


async def test_entries_survive_a_server_that_is_killed(valkey: Valkey, run_name: str) -> None:
    client = streams.connect(StreamSettings(redis_url=SecretStr(valkey.url)))
    side = Streams(client, run_name, bound=4)
    reader = consumer(side, lease_s=0.1)
    await side.publish("prompts", prompt(run_name), timeout_s=1)
    await reader.read(1, 0.01)
    [held] = await reader.read(1, 1)
    await asyncio.to_thread(valkey.write_out)
    valkey.kill()
    valkey.start()
    found: list[Entry[PromptRecord]] = []
    async with asyncio.timeout(20):
        while not found:
            found = await reader.read(1, 1)
    assert found[0].record == held.record
    await client.aclose()


async def test_a_flushed_server_is_a_fresh_start_not_an_error(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=4)
    reader = consumer(side)
    await reader.read(1, 0.01)
    await redis.flushall()
    assert await reader.read(1, 0.01) == []
    await side.publish("prompts", prompt(run_name), timeout_s=1)
    [entry] = await reader.read(1, 1)
    assert entry.record.group_id == "g1"


def test_a_sampled_group_is_a_valid_rollout() -> None:
    record = rollout(prompt("r"))
    assert RolloutRecord.model_validate_json(record.model_dump_json()) == record


async def test_entries_behind_those_of_busy_consumers_are_taken_over(redis: Redis, run_name: str) -> None:
    """One look for silent consumers sees a part of the stream; the next look goes on behind it."""
    side = Streams(redis, run_name, bound=200)
    busy, dead, reader = consumer(side, 1.0), consumer(side, 1.0), consumer(side, 1.0)
    for number in range(60):
        await side.publish("prompts", prompt(run_name, f"g{number}"), timeout_s=1)
    await busy.read(1, 0.01)
    held = [*await busy.read(25, 1), *await busy.read(25, 1)]
    left = await dead.read(10, 1)
    assert (len(held), len(left)) == (50, 10)
    await asyncio.sleep(2 * dead._leases._lease_ms / 1000)
    await busy._leases._set_idle([entry.id for entry in held], idle_ms=0)
    taken = [entry.id for _ in range(8) for entry in await reader.read(1, 0.01)]
    assert set(taken) & {entry.id for entry in left}


async def test_streams_of_a_run_that_vanished_end_by_themselves(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=8)
    reader = consumer(side)
    await reader.read(1, 0.01)
    await consumer(Streams(redis, "never-written", bound=8)).read(1, 0.01)
    await side.publish("prompts", prompt(run_name, "g"), timeout_s=1)
    [entry] = await reader.read(1, 1)
    await reader.forward(entry, "rollouts", rollout(entry.record), timeout_s=1)
    await Blobs(redis, run_name).put(b"picture", "g")
    found = [key async for key in redis.scan_iter("mor:*")]
    assert len(found) == 6
    assert all([0 < await redis.ttl(key) <= LEFTOVER_S for key in found])
