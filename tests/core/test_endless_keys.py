"""A lock that does not end is deleted once, and the lock that follows it stays."""

from __future__ import annotations

import asyncio

import pytest
from mor_core.endless_keys import delete_endless
from redis.asyncio import Redis


@pytest.mark.anyio
async def test_of_those_that_delete_an_endless_key_one_does_and_a_new_one_stays(redis: Redis) -> None:
    for left_ms in (None, 60_000):
        await redis.set("k", "foreign", px=left_ms)

        async def take(name: str) -> tuple[bool, bool]:
            deleted = await delete_endless(redis, "k", 10)
            return deleted, bool(await redis.set("k", name, nx=True, px=10_000))

        deleted, taken = zip(*await asyncio.gather(*map(take, "abcdef")), strict=True)
        assert (sum(deleted), sum(taken)) == (1, 1)
        assert not await delete_endless(redis, "k", 10)
    await redis.delete("k")
    assert not await delete_endless(redis, "k", 10)
