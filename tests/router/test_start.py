"""Start of a router before its queue server."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from tests.conftest import Valkey
from tests.router.conftest import Start, eventually

pytestmark = pytest.mark.anyio


async def test_a_router_that_starts_before_its_queue_server_waits_for_it(start: Start, valkey: Valkey) -> None:
    valkey.kill()
    async with start(redis_url=SecretStr(valkey.url)) as api:
        assert (await api.http.get("/healthz")).status_code == 200
        assert (await api.http.get("/readyz")).status_code == 503
        valkey.start()

        async def ready() -> bool:
            return (await api.http.get("/readyz")).status_code == 200

        await eventually(ready, within_s=30)
        assert await api.ok("GET", "/v1/clients") == []
