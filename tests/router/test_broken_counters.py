"""Counters in Redis that hold no number: replicas that meet one at once begin it anew once, and each count counts."""

from __future__ import annotations

import asyncio
import json

import pytest
from mor_router.clients.minute_quota import MinuteQuota
from mor_router.objectives.gates import GateStore
from mor_router.objectives.objective_store import ObjectiveStore
from mor_router.store import OBJECTIVES, VERSIONS, key
from mor_router.trust.live_audits import AuditStore
from mor_router.trust.person_tallies import PersonTallies
from redis.asyncio import Redis
from redis.exceptions import ResponseError

JUNK = ["no number", str(2**63 - 1), str(-(2**40))]
REPLICAS = 6
ROUNDS = 10


async def put_junk(redis: Redis, name: str, content: str | None) -> None:
    """Replace a counter; ``None``: by a key of another type."""
    await redis.delete(name)
    await (redis.sadd(name, "x") if content is None else redis.set(name, content))


@pytest.mark.anyio
@pytest.mark.parametrize("junk", [*JUNK, None])
async def test_a_quota_begins_anew_once(redis: Redis, junk: str | None) -> None:
    name = key("quota", "who")
    for _ in range(ROUNDS):
        await put_junk(redis, name, junk)
        replies = await asyncio.gather(*(MinuteQuota(redis).add(("who",)) for _ in range(REPLICAS)))
        assert sorted(count for count, _ in replies) == [*range(1, REPLICAS + 1)]
        assert 0 < await redis.ttl(name) <= 60


@pytest.mark.anyio
async def test_a_quota_that_does_not_end_begins_anew_once(redis: Redis) -> None:
    name = key("quota", "who")
    for _ in range(ROUNDS):
        await redis.set(name, 5)
        replies = await asyncio.gather(*(MinuteQuota(redis).add(("who",)) for _ in range(REPLICAS)))
        assert sorted(count for count, _ in replies) == [*range(1, REPLICAS + 1)]


@pytest.mark.anyio
@pytest.mark.parametrize("junk", [*JUNK, None, "0", str(2**60)])
async def test_no_two_gates_get_the_same_version(redis: Redis, junk: str | None) -> None:
    """Nor one that a stored gate has, also where the counter is behind the stored versions."""
    await redis.hset(OBJECTIVES, "o", "{}")
    await redis.hset(key("gates", "o"), "7", "{}")
    for _ in range(ROUNDS):
        await put_junk(redis, VERSIONS, junk)
        given = await asyncio.gather(*(GateStore(redis).next_version() for _ in range(REPLICAS)))
        assert sorted(given) == [*range(8, 8 + REPLICAS)]


@pytest.mark.anyio
@pytest.mark.parametrize("junk", [*JUNK, None])
async def test_each_answer_of_a_person_counts(redis: Redis, junk: str | None) -> None:
    place = key("people", "o")
    for _ in range(ROUNDS):
        await put_field(redis, place, json.dumps(["ann", "labelled"]), junk)
        await asyncio.gather(*(PersonTallies(redis).count("o", "ann", "labelled") for _ in range(REPLICAS)))
        assert (await PersonTallies(redis).of("o"))["ann"]["labelled"] == REPLICAS


@pytest.mark.anyio
@pytest.mark.parametrize("junk", [*JUNK, None])
async def test_each_closed_audit_counts(redis: Redis, junk: str | None) -> None:
    stores = [AuditStore(redis, ObjectiveStore(redis)) for _ in range(REPLICAS)]
    for _ in range(ROUNDS):
        await put_field(redis, key("tally", "o"), "dropped", junk)
        names = [f"{number:012d}-1-x" for number in range(REPLICAS)]
        await redis.hset(key("audits", "o"), mapping=dict.fromkeys(names, "junk"))
        await asyncio.gather(*(store.get("o", name) for store, name in zip(stores, names, strict=True)))
        assert await stores[0].closed("o") == {"dropped": REPLICAS}


async def put_field(redis: Redis, place: str, field: str, junk: str | None) -> None:
    await redis.delete(place)
    await (redis.sadd(place, "x") if junk is None else redis.hset(place, field, junk))


@pytest.mark.anyio
async def test_a_refused_command_costs_no_count(redis: Redis, redis_url: str) -> None:
    """A tally is begun anew where it is no number, not where the server refuses to raise it."""
    await redis.execute_command("ACL", "SETUSER", "some", "reset", "on", ">secret", "+@all", "-hincrby", "~*")  # type: ignore[no-untyped-call]
    await redis.hset(key("tally", "o"), "dropped", 5)
    await redis.hset(key("audits", "o"), "000000000001-1-x", "junk")
    async with Redis.from_url(redis_url.replace("redis://", "redis://some:secret@")) as user:
        with pytest.raises(ResponseError, match="permission"):
            await AuditStore(user, ObjectiveStore(user)).get("o", "000000000001-1-x")
    assert (await AuditStore(redis, ObjectiveStore(redis)).closed("o"))["dropped"] == 5
    await redis.execute_command("ACL", "DELUSER", "some")  # type: ignore[no-untyped-call]
