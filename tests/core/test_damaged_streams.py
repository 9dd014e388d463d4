"""Streams whose entries, keys or consumer groups somebody damaged: the other entries come through."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest
from mor_core import streams
from mor_core.bounded_replies import OversizedReply, replies_up_to
from mor_core.stream_consumer import Consumer
from mor_core.streams import Streams
from mor_core.wire import DeadLetter, PromptRecord
from pydantic import model_validator
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.core.records import prompt, rollout
from tests.core.test_streams import consumer

pytestmark = pytest.mark.anyio


async def test_an_unreadable_record_becomes_a_dead_letter_with_its_text(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=4)
    reader = consumer(side)
    await redis.xadd(side.key("prompts"), {"record": '{"schema": "mor.prompt/1", "colour": 3}'})
    await reader.read(1, 0.01)
    assert await reader.read(1, 0.5) == []
    letters: Consumer[streams.DeadLetter] = Consumer(side, "dead", "trainer", 30)
    await letters.read(1, 0.01)
    [letter] = await letters.read(1, 1)
    assert "messages: Field required" in letter.record.reason
    assert letter.record.record == '{"schema": "mor.prompt/1", "colour": 3}'
    assert await side.depth("prompts") == 0


async def test_a_record_that_breaks_its_validator_becomes_a_dead_letter(
    redis: Redis, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entries beside it are read."""

    class Fragile(PromptRecord):
        @model_validator(mode="after")
        def check(self) -> Fragile:
            return {"good": self}[self.group_id]

    monkeypatch.setitem(streams.RECORD_TYPES, "prompts", Fragile)
    side = Streams(redis, run_name, bound=4)
    reader = consumer(side)
    for name in ("bad", "good"):
        await side.publish("prompts", prompt(run_name, name), timeout_s=1)
    await reader.read(2, 0.01)
    [entry] = await reader.read(2, 1)
    assert entry.record.group_id == "good"
    [(_, fields)] = await redis.xrange(side.key("dead"))
    assert streams.DeadLetter.model_validate_json(fields[b"record"]).reason.startswith("KeyError in ")


async def test_a_record_of_another_run_becomes_a_dead_letter(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=8)
    reader = consumer(side)
    await reader.read(1, 0.01)
    await side.publish("prompts", prompt("another", "g"), timeout_s=1)
    assert await reader.read(1, 1) == []
    [(_, fields)] = await redis.xrange(side.key("dead"))
    assert "is in the stream of run" in streams.DeadLetter.model_validate_json(fields[b"record"]).reason


async def test_a_huge_record_is_given_up_unread_and_those_beside_it_come_through(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=8)
    reader = consumer(side)
    await reader.read(1, 0.01)
    huge = "x" * (streams.LARGEST_RECORD + 1)
    await side.publish("prompts", prompt(run_name, "first"), timeout_s=1)
    await redis.xadd(side.key("prompts"), {"record": huge})
    await side.publish("prompts", prompt(run_name, "last"), timeout_s=1)
    before = (await redis.info("stats"))["total_net_output_bytes"]
    found = [entry.record.group_id for entry in await reader.read(8, 1)]
    await side.backlog("prompts")
    assert (await redis.info("stats"))["total_net_output_bytes"] - before < len(huge)
    assert found == ["first", "last"]
    [(_, fields)] = await redis.xrange(side.key("dead"))
    assert "at most" in DeadLetter.model_validate_json(fields[b"record"]).reason


HUGE = {
    "one field": "redis.call('XADD', KEYS[1], '*', 'record', string.rep('x', 17 * 2 ^ 20))",
    "many fields": """
        local fields = {'record', string.rep('x', 17 * 2 ^ 20)}
        for i = 1, 1000 do fields[#fields + 1], fields[#fields + 2] = i, string.rep('x', 2 ^ 16) end
        redis.call('XADD', KEYS[1], '*', unpack(fields))""",
}


@pytest.mark.parametrize("kind", HUGE)
async def test_a_huge_record_that_comes_while_a_consumer_waits_is_not_read(
    redis: Redis, run_name: str, kind: str
) -> None:
    side = Streams(redis, run_name, bound=8)
    reader = consumer(side)
    await reader.read(1, 0.01)
    tracemalloc.start()
    try:
        reading = asyncio.create_task(reader.read(1, 5))
        await asyncio.sleep(0.1)  # it waits
        await redis.eval(HUGE[kind], 1, side.key("prompts"))
        assert await reading == []
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    [(_, fields)] = await redis.xrange(side.key("dead"))
    assert "at most" in DeadLetter.model_validate_json(fields[b"record"]).reason
    await side.publish("prompts", prompt(run_name, "next"), timeout_s=1)
    assert [entry.record.group_id for entry in await reader.read(1, 1)] == ["next"]


async def test_no_reply_is_read_over_the_bound_and_the_next_command_has_its_own(redis: Redis) -> None:
    await redis.rpush("list", *["x" * 1000] * 100)  # type: ignore[misc]
    with replies_up_to(50_000), pytest.raises(OversizedReply):
        await redis.lrange("list", 0, -1)  # type: ignore[misc]
    with replies_up_to(50_000):
        assert len(await redis.lrange("list", 0, 9)) == 10  # type: ignore[misc]
    assert len(await redis.lrange("list", 0, -1)) == 100  # type: ignore[misc]


@pytest.mark.parametrize("stream", ["prompts", "rollouts", "dead"])
async def test_a_key_that_takes_no_entries_is_begun_anew(redis: Redis, run_name: str, stream: Any) -> None:
    side = Streams(redis, run_name, bound=8)
    reader = consumer(side)
    await reader.read(1, 0.01)
    last = f"{2**64 - 1}-{2**64 - 1}"
    for spoil in (
        lambda: redis.set(side.key(stream), "x"),
        lambda: redis.xadd(side.key(stream), {"record": "x"}, id=last),
    ):
        await redis.delete(side.key(stream))
        await spoil()
        await side.backlog(stream)
        await side.publish("prompts", prompt(run_name, "g"), timeout_s=1)
        found: list[Any] = []
        for _ in range(4):
            found = found or await reader.read(1, 0.05)
        if stream == "rollouts":
            await reader.forward(found[0], "rollouts", rollout(found[0].record), timeout_s=1)
        else:
            await reader.give_up(found[0], "a test")
        assert await side.depth("prompts") == 0


async def test_a_source_of_another_type_leaves_the_next_stream_as_it_is(redis: Redis, run_name: str) -> None:
    side = Streams(redis, run_name, bound=8)
    reader = consumer(side)
    await reader.read(1, 0.01)
    await side.publish("prompts", prompt(run_name, "g"), timeout_s=1)
    [entry] = await reader.read(1, 1)
    await side.publish("rollouts", rollout(prompt(run_name, "other")), timeout_s=1)
    await redis.set(side.key("prompts"), "x")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await reader.forward(entry, "rollouts", rollout(entry.record), timeout_s=1)
    [(_, fields)] = await redis.xrange(side.key("rollouts"))
    assert b"other" in fields[b"record"], "neither deleted nor added to"


@pytest.mark.parametrize("position", ["99999999999999-0", f"{2**64 - 1}-{2**64 - 1}"])
async def test_a_consumer_group_that_was_moved_ahead_returns(redis: Redis, run_name: str, position: str) -> None:
    side = Streams(redis, run_name, bound=8)
    reader = consumer(side)
    await redis.xgroup_create(side.key("prompts"), "rollout", id=position, mkstream=True)
    for group in ("first", "second"):
        await side.publish("prompts", prompt(run_name, group), timeout_s=1)
    found = [entry for _ in range(4) for entry in await reader.read(8, 0.02)]
    assert [entry.record.group_id for entry in found] == ["first", "second"]
    assert await reader.read(8, 0.02) == await reader.read(8, 0.02) == [], "entries that are held are not read again"


@pytest.mark.parametrize("count", [2**63 - 1, 10**17])
async def test_a_forged_number_of_deliveries_is_corrected(redis: Redis, run_name: str, count: int) -> None:
    side = Streams(redis, run_name, bound=8)
    reader = consumer(side, lease_s=0.05)
    await reader.read(1, 0.01)
    await side.publish("prompts", prompt(run_name, "g"), timeout_s=1)
    [held] = await consumer(side).read(1, 1)
    name = side.key("prompts")
    await redis.xclaim(name, "rollout", "forger", 0, [held.id], retrycount=count, justid=True)
    await asyncio.sleep(0.1)
    [entry] = await reader.read(1, 0.05)
    assert entry.deliveries == 2
    await asyncio.sleep(0.1)
    [again] = await consumer(side, lease_s=0.05).read(1, 0.05)
    assert again.deliveries == 3
    await reader.give_up(again, "a test")
    assert await side.depth("dead") == 1
