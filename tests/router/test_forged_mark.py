"""Junk in a counter of the state's mark in Redis neither looks like a loss nor ends snapshots and removals."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from mor_router.state_mark import read_mark
from mor_router.store import STATE
from redis.asyncio import Redis

from tests.router.conftest import Start, eventually
from tests.router.endpoints import Endpoints
from tests.router.test_state_loss import fill, problem_of, saved

pytestmark = pytest.mark.anyio


async def test_a_number_of_a_snapshot_that_was_raised_leaves_snapshots_in_use_and_bounded(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder, router_state_keep=2) as api:
        await fill(api, endpoints)
        before = await saved(api, folder)
        await redis.hset(STATE, "snapshot", 10**13)
        for name in ("clinic", "bank", "newcomer"):
            await api.ok("DELETE", f"/v1/clients/{name}")
            assert name not in (await saved(api, folder)).state.hashes.get("clients", {})
        assert len(list(folder.glob("*.json"))) <= 2 + 1
        last = await saved(api, folder)
        assert last.mark.installation == before.mark.installation


@pytest.mark.parametrize("junk", ["x", str(2**63 - 1), str(2**60), "-5", "1e3"])
@pytest.mark.parametrize("field", ["snapshot", "removals", "epoch"])
async def test_a_counter_of_the_mark_that_does_not_fit_stops_nothing(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path, field: str, junk: str
) -> None:
    folder = tmp_path / "state"
    async with start(router_state_dir=folder) as api:
        await fill(api, endpoints)
        before = await saved(api, folder)
        await redis.hset(STATE, field, junk)

        async def is_mended() -> bool:
            return await redis.hget(STATE, field) != junk.encode()

        await eventually(is_mended)
        await api.ok("DELETE", "/v1/clients/newcomer")
        after = await saved(api, folder)
        assert after.mark.installation == before.mark.installation
        assert "newcomer" not in after.state.hashes["clients"]

        async def is_ready() -> bool:
            return await problem_of(api) == "" and await read_mark(redis) is not None

        await eventually(is_ready)
        assert (await api.reward("answer 1", "answer 2"))["clients"]


async def test_a_counter_that_was_raised_beside_a_look_at_junk_stays(redis: Redis) -> None:
    """A restoration raises the epoch while replicas find junk in it: what they read is known to be of another state."""
    for _ in range(30):
        await redis.hset(STATE, mapping={"installation": "x", "epoch": "junk"})

        async def restoration() -> None:
            await redis.hset(STATE, "epoch", 7)

        await asyncio.gather(*(read_mark(redis) for _ in range(4)), restoration())
        assert await redis.hget(STATE, "epoch") == b"7"
