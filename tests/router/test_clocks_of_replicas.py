"""Replicas of the router whose clocks differ write times that fit together, because these are the queue server's."""

from __future__ import annotations

import time
from email.utils import formatdate

import httpx
import pytest
from mor_core.server_clock import SERVER_CLOCK
from mor_core.wire import ModelRef
from mor_router.clients.honeypot_scores import scored_now
from mor_router.clients.http import _retry_after
from mor_router.clients.registry import next_generation

from tests.router.conftest import Start, eventually
from tests.router.endpoints import Endpoints
from tests.shifted_clock import Shift

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("ahead", [600.0, -600.0, -3600.0])
async def test_records_have_the_queue_servers_times(
    start: Start, endpoints: Endpoints, shift: Shift, ahead: float
) -> None:
    truth = time.time()
    endpoint = endpoints.endpoint("clinic")
    async with start() as api:
        shift(ahead)

        async def measured() -> bool:
            return abs(SERVER_CLOCK.now() - truth) < 60

        await eventually(measured)
        await api.enrol(endpoint)
        before = await api.router.clients.registry.get("clinic")
        assert abs(before.enrolled_at - truth) < 60
        await api.ok("DELETE", "/v1/clients/clinic")
        shift(-ahead)
        await api.enrol(endpoint)
        after = await api.router.clients.registry.get("clinic")
        assert after.generation > before.generation, "a removed client that comes back has newer tokens"
        assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
        score = scored_now("clinic", ModelRef(name="m", version="1"), 1, "0" * 64, (1.0, 0.0))
        assert after.enrolled_at <= score.at < truth + 60
        assert next_generation() > after.generation


@pytest.mark.parametrize("ahead", [600.0, -600.0])
def test_a_date_to_retry_at_is_compared_with_the_clients_own_clock(ahead: float) -> None:
    now = time.time() + ahead
    headers = {"Date": formatdate(now, usegmt=True), "Retry-After": formatdate(now + 40, usegmt=True)}
    assert _retry_after(httpx.Response(503, headers=headers)) == pytest.approx(40, abs=1)
    assert _retry_after(httpx.Response(503, headers=headers | {"Date": "yesterday"})) is not None
