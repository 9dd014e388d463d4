"""A burst of commands opens connections; afterwards a process holds as many as it needs."""

from __future__ import annotations

import asyncio

import pytest
from mor_core import redis_pool
from redis.asyncio import Redis

pytestmark = pytest.mark.anyio


async def test_connections_of_a_burst_are_closed_again(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connections() -> int:
        return len(await redis.client_list())

    async def read_many() -> None:
        await asyncio.gather(*(redis.blpop([f"nothing-{at}"], timeout=2) for at in range(120)))

    await read_many()
    burst = await connections()
    assert burst >= 120
    await read_many()
    assert await connections() == burst, "they are used again while they are needed"
    monkeypatch.setattr(redis_pool, "_IDLE_S", 0.2)
    for _ in range(6):
        await asyncio.sleep(0.1)
        await redis.ping()
    assert await connections() == 1
    await asyncio.gather(*(redis.set(f"key-{at}", at) for at in range(12)))
    assert await redis.dbsize() == 12
