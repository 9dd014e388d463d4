"""A replica of the router without the volume of the state: it waits for the one that has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.router.conftest import Api, Start, eventually
from tests.router.endpoints import Endpoints
from tests.router.test_state_loss import fill, mark_exists, problem_of, saved

pytestmark = pytest.mark.anyio


async def test_a_replica_without_the_volume_waits_for_the_one_that_has_it(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path
) -> None:
    async with start(router_state_elsewhere=True) as other:
        await eventually(lambda: _is_waiting(other), 10)
        assert not await mark_exists(redis), "it begins no empty state"
        async with start(router_state_dir=tmp_path / "state") as keeper:
            await fill(keeper, endpoints)
            await saved(keeper, tmp_path / "state")
            await eventually(lambda: _has_clients(other, 3), 10)
        await redis.flushdb()
        await eventually(lambda: _is_waiting(other), 10)
        assert "MOR_ROUTER_STATE_DIR" in await problem_of(other)
        async with start(router_state_dir=tmp_path / "state"):
            await eventually(lambda: _has_clients(other, 3), 10)
            await eventually(lambda: _is_whole(other), 10)


async def _is_waiting(api: Api) -> bool:
    return "has not restored it yet" in await problem_of(api)


async def _is_whole(api: Api) -> bool:
    return await problem_of(api) == ""


async def _has_clients(api: Api, number: int) -> bool:
    return len(await api.ok("GET", "/v1/clients")) == number
