"""A PostgreSQL server that hangs: run control waits once for its answer, and goes on by itself."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator

import pytest
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.control.bounded_connection import BoundedConnection
from pydantic import SecretStr

from tests.chaos.link_proxy import Link, Mode, ProxyLoop
from tests.conftest import free_port
from tests.postgresql import PostgreSQL
from tests.trainer.control import create
from tests.trainer.databases import postgresql  # noqa: F401
from tests.trainer.kit import bearer, running

_MARGIN_S = 90.0
"""Time in which a busy machine does all requests where none waits; each wait for PostgreSQL would add seconds."""


@pytest.fixture
def link(postgresql: PostgreSQL) -> Iterator[Link]:  # noqa: F811
    """A connection to PostgreSQL that keeps TCP alive while nothing passes, as a stopped server or a pooler does."""
    loop = ProxyLoop()
    proxy = Link(loop, "database", free_port(), postgresql.port)
    yield proxy
    proxy.close()
    loop.close()


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["hang", "one_way"])
async def test_a_server_that_hangs_is_waited_for_once(
    settings: ControlSettings,
    spec: RunSpec,
    link: Link,
    postgresql: PostgreSQL,  # noqa: F811
    mode: Mode,
) -> None:
    address = postgresql.new_database(f"mor-{uuid.uuid4().hex[:8]}").replace(f":{postgresql.port}/", f":{link.port}/")
    changes = {"database_url": SecretStr(address), "control_lease_s": 2.0}
    async with running(create_app(settings.model_copy(update=changes))) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        link.set(mode)
        began = time.monotonic()
        body = spec.model_dump(mode="json")
        for _ in range(30):
            reply = await http.post("/v1/runs", json=body)
            assert (reply.status_code, reply.json()["title"]) == (503, "History not available")
            assert (await http.get("/healthz")).status_code == 200
        assert time.monotonic() - began < 2 * BoundedConnection.answer_s + _MARGIN_S, "each request waits anew"
        assert "PostgreSQL" in (await http.get("/readyz")).json()["missing"]["history"]
        link.set("cut")
        until = time.monotonic() + _MARGIN_S
        while (reply := await http.get("/v1/runs")).status_code != 200:
            assert time.monotonic() < until, reply.text
            await asyncio.sleep(0.1)
        assert run in {found["id"] for found in reply.json()}
        assert (await http.get("/readyz")).status_code == 200
