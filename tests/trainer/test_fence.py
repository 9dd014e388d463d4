"""A superseded attempt at a run changes nothing on the queue server, whatever it writes and whenever it wakes up."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mor_core.blobs import Blobs
from mor_core.errors import Superseded
from mor_core.fence import ATTEMPT, Fence
from mor_core.run_announcements import RUNS_KEY, AnnouncedRuns, RunAnnouncement, announce, withdraw
from mor_core.stream_consumer import Consumer
from mor_core.streams import Streams, key
from mor_core.wire import DeadLetter, PromptRecord, RewardRecord
from mor_trainer.groups.flush_detector import FlushDetector
from mor_trainer.groups.group_streams import GroupStreams
from mor_trainer.groups.liveness import Liveness
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.core.records import prompt, rollout
from tests.trainer.stages import reward_record

pytestmark = pytest.mark.anyio


async def content(redis: Redis) -> dict[bytes, Any]:
    return {name: await redis.dump(name) for name in await redis.keys()}


class Attempt:
    """Every write of one attempt at a run."""

    def __init__(self, redis: Redis, run: str, attempt: int, lost: Callable[[], str | None] = lambda: None) -> None:
        self.fence = Fence(run, attempt, lost)
        self.run, self.redis = run, redis
        self.streams = Streams(redis, run, 1000, self.fence)
        self.blobs = Blobs(redis, run, None, self.fence)
        self.groups = GroupStreams(redis, self.fence)
        self.detector = FlushDetector(redis, self.fence)
        self.rewards: Consumer[RewardRecord] = Consumer(self.streams, "rewards", "trainer", 60)
        """Reader that holds an entry of the run."""
        self.held: list[Any] = []
        self.of_run: dict[str, Callable[[], Awaitable[object]]] = {
            "publish": lambda: self.streams.publish("prompts", prompt(run), timeout_s=1),
            "put": lambda: self.blobs.put(b"picture %d" % random.randrange(3), "g1"),
            "release": lambda: self.blobs.release("g1"),
            "clear": self.groups.clear,
            "mark": self.detector.check,
            "unmark": self.detector.remove,
            "settle": lambda: self.rewards.settle(self.held[0]),
            "give up": lambda: self.rewards.give_up(self.held[0], "it does not fit"),
        }
        self.of_announcement: dict[str, Callable[[], Awaitable[object]]] = {
            "announce": lambda: announce(redis, run, "model", fence=self.fence),
            "withdraw": lambda: withdraw(redis, run, self.fence),
        }

    async def hold(self) -> None:
        """Hold a scored group, as before the process was stopped."""
        await self.rewards.read(1, 0.01)
        record = prompt(self.run).model_copy(update={"run_attempt": self.fence.attempt})
        scored = reward_record(rollout(record), (1.0, 2.0))
        await Streams(self.redis, self.run, 1000).publish("rewards", scored, timeout_s=1)
        self.held = await self.rewards.read(1, 1)


@pytest.mark.parametrize("seed", range(10))
async def test_no_write_of_a_superseded_attempt_takes_effect(redis: Redis, run_name: str, seed: int) -> None:
    """Two attempts write in any order; once the later one has written, the earlier one is refused."""
    draw = random.Random(seed)
    earlier, later = Attempt(redis, run_name, 1), Attempt(redis, run_name, 2)
    await earlier.hold()
    await later.hold()
    begun = {"of_run": False, "of_announcement": False}
    for _ in range(60):
        attempt = draw.choice([earlier, later])
        kind = draw.choice(["of_run", "of_run", "of_announcement"])
        name, write = draw.choice(sorted(getattr(attempt, kind).items()))
        if attempt is earlier and begun[kind]:
            before = await content(redis)
            with pytest.raises(Superseded):
                await write()
            assert await content(redis) == before, f"{name} took effect"
        else:
            await write()
            begun[kind] |= attempt is later and name != "withdraw"
            if name == "withdraw":
                begun[kind] = False


async def test_a_lost_lease_is_enough_without_a_later_attempt(redis: Redis, run_name: str) -> None:
    lost: list[str] = []
    attempt = Attempt(redis, run_name, 1, lambda: lost[0] if lost else None)
    await attempt.hold()
    await attempt.of_announcement["announce"]()
    before = await content(redis)
    lost.append("run control was unreachable for longer than the lease")
    for write in {**attempt.of_run, **attempt.of_announcement}.values():
        with pytest.raises(Superseded, match="unreachable for longer"):
            await write()
    with pytest.raises(Superseded):
        await attempt.rewards.read(1, 0.01)
    assert await content(redis) == before


@pytest.mark.parametrize("stored", ["", "x", "nan", "-7", "1e999", "list"])
async def test_run_control_decides_where_the_number_is_forged(redis: Redis, run_name: str, stored: str) -> None:
    """The queue server's word is a hint: an attempt that run control confirms puts it right."""
    attempt = Attempt(redis, run_name, 3)
    name = key(run_name, ATTEMPT)
    await (redis.rpush(name, "x") if stored == "list" else redis.set(name, stored))
    forged = RunAnnouncement(run=run_name, model="model", renewed_at=0.0, attempt=2**50)
    await redis.hset(RUNS_KEY, run_name, forged.model_dump_json())

    async def announcing() -> None:
        await announce(redis, run_name, "model", fence=attempt.fence)

    if stored == "1e999":
        with pytest.raises(Superseded):
            await attempt.of_run["publish"]()
        await Liveness(redis, attempt.fence, announcing, attempt.groups, lambda: None).reclaim()
    await attempt.of_run["publish"]()
    assert await redis.get(name) == b"3"
    if stored == "1e999":
        assert [found.attempt for found in await AnnouncedRuns(redis).read()] == [3]
    else:
        with pytest.raises(Superseded):
            await announcing()


async def test_a_stage_settles_what_a_superseded_attempt_issued_without_a_dead_letter(
    redis: Redis, run_name: str
) -> None:
    stage: Consumer[PromptRecord] = Consumer(Streams(redis, run_name, 8), "prompts", "rollout", 60)
    await stage.read(1, 0.01)
    await Attempt(redis, run_name, 0).streams.publish("prompts", prompt(run_name), timeout_s=1)
    await Attempt(redis, run_name, 0).streams.publish("prompts", prompt(run_name, "g2"), timeout_s=1)
    first, second = await stage.read(2, 1)
    await Attempt(redis, run_name, 1).of_run["clear"]()  # the next worker has claimed the run
    with pytest.raises(Superseded):
        await Blobs(redis, run_name).put(b"tokens", "g1", issuer=first.record.run_attempt)
    with pytest.raises(Superseded):
        await stage.forward(first, "rollouts", rollout(first.record), timeout_s=1)
    with pytest.raises(Superseded):
        await stage.give_up(second, "its weights are gone")
    assert await redis.xlen(key(run_name, "rollouts")) == await redis.xlen(key(run_name, "dead")) == 0
    assert (await redis.xpending(key(run_name, "prompts"), "rollout"))["pending"] == 0, "delivered no more"
    current = prompt(run_name).model_copy(update={"run_attempt": 1})
    await Attempt(redis, run_name, 1).streams.publish("prompts", current, timeout_s=1)
    (entry,) = await stage.read(1, 1)
    await stage.give_up(entry, "its picture is broken")
    (_, fields), *_ = await redis.xrange(key(run_name, "dead"))
    assert DeadLetter.model_validate_json(fields[b"record"]).run_attempt == 1


async def test_a_number_that_may_not_be_read_stays(redis: Redis, redis_url: str, run_name: str) -> None:
    """A user in Redis that lacks a command is no reason to take a key for one of another type."""
    later = Attempt(redis, run_name, 2)
    await later.hold()
    for name in ("publish", "put", "mark"):
        await later.of_run[name]()
    before = await content(redis)
    await redis.execute_command("ACL", "SETUSER", "some", "reset", "on", ">secret", "+@all", "-get", "~*")
    async with Redis.from_url(redis_url.replace("redis://", "redis://some:secret@")) as user:
        earlier = Attempt(user, run_name, 1)
        for name in ("publish", "put", "release", "clear", "mark", "unmark"):
            with pytest.raises(ResponseError, match="permission"):
                await earlier.of_run[name]()
            assert await content(redis) == before, name
    await redis.execute_command("ACL", "DELUSER", "some")
