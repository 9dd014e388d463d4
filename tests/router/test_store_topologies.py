"""The router keeps its registry behind Sentinels and on a cluster, through transactions, locks and a fail-over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from mor_router import store
from pydantic import SecretStr

from tests.redis_servers import RedisCluster, SentinelPair, needs_redis
from tests.router.conftest import Start, eventually
from tests.router.endpoints import Endpoints

OBJECTIVE = {"name": "helpful", "text": "Help the reader."}


@needs_redis
@pytest.mark.anyio
@pytest.mark.parametrize("kind", [SentinelPair, RedisCluster])
async def test_a_router_keeps_its_registry(kind: Any, start: Start, endpoints: Endpoints, tmp_path: Path) -> None:
    servers = kind(tmp_path / "servers")
    first, second = endpoints.endpoint("clinic"), endpoints.endpoint("lab")
    try:
        async with start(redis_url=SecretStr(servers.url)) as api:
            redis = api.router.resources.redis
            await api.enrol(first)
            await api.ok("POST", "/v1/objectives", OBJECTIVE)
            assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
            assert (await api.call("GET", "/readyz")).status_code == 200
            exported = await store.export(redis)
            assert exported.hashes["clients"].keys() == {"clinic"}
            await store.restore(redis, exported, replace=True)
            assert await store.objective_names(redis) == ["helpful"]
            await asyncio.to_thread(servers.fail_over, store.CLIENTS)

            async def is_ready() -> bool:
                return (await api.call("GET", "/readyz")).status_code == 200

            await eventually(is_ready, 30)
            await api.enrol(second)
            listed = await api.ok("GET", "/v1/clients")
            assert "lab" in str(listed)
            assert (await api.reward("answer 3", "answer 4"))["status"] == "ok"
    finally:
        servers.end()
