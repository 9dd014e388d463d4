"""A lock that does not end is deleted once, and the lock that follows it stays."""

from __future__ import annotations

import asyncio
import time

import pytest
from mor_core.endless_keys import LeaseKey, delete_endless
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


@pytest.mark.anyio
async def test_a_key_that_its_holder_renews_stays(redis: Redis) -> None:
    """The clock is set back at each look, and the holder renews the key before the next one."""
    watch = LeaseKey(redis, "k", 0.2)
    for _ in range(20):
        await redis.set("k", "holder", px=10**9)
        assert not await watch.delete_unheld()
        await redis.pexpire("k", 200)
        assert not await watch.delete_unheld()
        await redis.pexpire("k", 10**9)
        await asyncio.sleep(0.02)
    await redis.set("k", "of nobody")
    begun = time.monotonic()
    while not await watch.delete_unheld():
        assert time.monotonic() - begun < 20
        await asyncio.sleep(0.02)
    assert time.monotonic() - begun >= 0.2
    assert not await redis.exists("k")


@pytest.mark.anyio
async def test_looks_that_are_far_apart_delete_nothing(redis: Redis) -> None:
    watch = LeaseKey(redis, "k", 0.05)
    await redis.set("k", "holder")
    for _ in range(3):
        assert not await watch.delete_unheld()
        await asyncio.sleep(0.1)
