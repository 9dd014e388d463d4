"""One leader at a time, and another one after it."""

from __future__ import annotations

import asyncio

import pytest
from mor_core.tasks import stop
from mor_router.leadership import Leadership
from mor_router.store import key
from redis.asyncio import Redis

from tests.core.test_queue_clock import HOUR_S, ShiftedServer, server, shifted  # noqa: F401 - fixtures
from tests.router.conftest import eventually

pytestmark = pytest.mark.anyio


async def test_one_replica_leads_and_another_takes_over(redis: Redis) -> None:
    leading: set[int] = set()

    async def work(replica: int) -> None:
        leading.add(replica)
        try:
            await asyncio.sleep(3600)
        finally:
            leading.discard(replica)

    tasks = [
        asyncio.create_task(Leadership(redis, "test", 1.0).while_leading(lambda replica=replica: work(replica)))
        for replica in range(3)
    ]

    async def one_leads() -> bool:
        return len(leading) == 1

    await eventually(one_leads)
    for _ in range(30):
        await asyncio.sleep(0.05)
        assert len(leading) <= 1
    (first,) = leading
    await stop([tasks[first]])
    await eventually(one_leads)
    assert leading != {first}
    (second,) = leading

    await redis.flushall()  # the lock is gone: the leader notices and stops before it goes on
    await eventually(one_leads)
    assert len(leading) == 1
    await stop(tasks)
    assert not leading
    assert second != first


async def test_failed_work_is_started_again(redis: Redis) -> None:
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        raise RuntimeError("the first time it fails")

    task = asyncio.create_task(Leadership(redis, "test", 0.5).while_leading(work))

    async def again() -> bool:
        return begun >= 2

    await eventually(again)
    await stop([task])


async def test_a_clock_that_is_set_back_gives_no_second_leader(server: ShiftedServer, shifted: Redis) -> None:  # noqa: F811
    leading, most = 0, 0

    async def work() -> None:
        nonlocal leading, most
        leading += 1
        most = max(most, leading)
        try:
            await asyncio.sleep(3600)
        finally:
            leading -= 1

    tasks = [asyncio.create_task(Leadership(shifted, "test", 2.0).while_leading(work)) for _ in range(16)]
    for jumps in range(24):
        await asyncio.sleep(0.4)
        server.jump(-HOUR_S * (jumps + 1))
    await stop(tasks)
    assert most == 1


@pytest.mark.parametrize("kind", ["string", "list"])
async def test_a_lock_that_nobody_holds_is_deleted(redis: Redis, kind: str) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()

    name = key("leader", "test")
    await (redis.set(name, "x") if kind == "string" else redis.rpush(name, "x"))
    task = asyncio.create_task(Leadership(redis, "test", 0.5).while_leading(work))
    await asyncio.wait_for(begun.wait(), 10)
    await stop([task])
