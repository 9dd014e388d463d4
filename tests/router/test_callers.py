"""Groups of other callers than the runs: their deadlines and inputs harm nobody, and nothing is learned from them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st
from mor_core.tasks import stop
from mor_router.clients.caller import RUNS, TokenCaller
from redis.asyncio import Redis

from tests.router.conftest import TOKENS, Api, Start
from tests.router.endpoints import Endpoint, Endpoints

pytestmark = pytest.mark.anyio

ITEM = {"item_id": "g", "messages": [{"role": "user", "content": "?"}], "responses": ["answer 1", "answer 3"]}


async def enrolled(api: Api, endpoints: Endpoints) -> list[Endpoint]:
    found = [endpoints.endpoint(name) for name in ("clinic", "bank")]
    for endpoint in found:
        await api.enrol(endpoint)
    return found


async def request(api: Api, scope: str = "service", **more: Any) -> dict[str, Any]:
    answer = await api.ok("POST", "/v1/reward", {"items": [ITEM], **more}, token=TOKENS[scope])
    found = answer["items"][0]
    assert isinstance(found, dict)
    return found


async def circuits(api: Api) -> list[tuple[str, str | None]]:
    found = (await api.ok("GET", "/v1/status"))["clients"]
    return [(line["circuit"], line["last_error"]) for line in found]


async def test_a_callers_short_deadline_opens_no_circuit(start: Start, endpoints: Endpoints) -> None:
    """The reproduction: six calls with a deadline of 30 ms to clients that need 200 ms."""
    async with start(circuit_least_calls=3, circuit_open_s=60) as api:
        for endpoint in await enrolled(api, endpoints):
            endpoint.delay_s = 0.2
        found = await asyncio.gather(*(request(api, deadline_s=0.03) for _ in range(6)))
        assert {item["status"] for item in found} == {"error"}
        assert await circuits(api) == [("closed", None)] * 2
        assert (await request(api))["status"] == "ok", "the caller itself is served with the router's deadline"
        assert (await api.reward("answer 1", "answer 3"))["status"] == "ok", "and so are the runs"


async def test_a_callers_odd_input_opens_that_callers_circuit_alone(start: Start, endpoints: Endpoints) -> None:
    async with start(circuit_least_calls=3, circuit_open_s=60) as api:
        clients = await enrolled(api, endpoints)
        for endpoint in clients:
            endpoint.broken = lambda _: JSONResponse({"detail": "cannot tokenise"}, 500)
        for _ in range(4):
            found = await request(api)
        assert {line["status"] for line in found["clients"]} == {"circuit_open"}
        assert await circuits(api) == [("closed", None)] * 2
        for endpoint in clients:
            endpoint.broken = None
        assert {line["status"] for line in (await request(api))["clients"]} == {"circuit_open"}
        assert (await request(api, "admin"))["status"] == "ok", "another caller"
        assert (await api.reward("answer 1", "answer 3"))["status"] == "ok", "the runs"


async def test_a_callers_many_calls_leave_the_runs_half_of_a_client(start: Start, endpoints: Endpoints) -> None:
    async with start(client_concurrency=2, deadline_s=1) as api:
        for endpoint in await enrolled(api, endpoints):
            endpoint.delay_s = 0.4
        many = [asyncio.create_task(request(api)) for _ in range(12)]
        await asyncio.sleep(0.1)
        assert (await api.reward("answer 1", "answer 3"))["status"] == "ok"
        found = await asyncio.gather(*many)
        assert "error" in {item["status"] for item in found}, "the caller waited for itself"
        assert await circuits(api) == [("closed", None)] * 2


async def test_a_callers_long_calls_do_not_let_a_client_seem_unreliable(start: Start, endpoints: Endpoints) -> None:
    """The client takes one call at a time: a run's call behind another caller's has no time left for its own."""
    async with start(deadline_s=1, circuit_least_calls=3, circuit_open_s=60) as api:
        slow = endpoints.endpoint("clinic")
        slow.limits["concurrency"] = 1
        for endpoint in (slow, endpoints.endpoint("bank")):
            await api.enrol(endpoint)
        slow.delay_s = 0.6
        ended: list[str] = []

        async def keep_calling() -> None:
            while True:
                lines = {line["client"]: line["detail"] for line in (await request(api))["clients"]}
                ended.append(lines["clinic"] or "")

        callers = [asyncio.create_task(keep_calling()) for _ in range(4)]
        await asyncio.sleep(0.1)
        for _ in range(4):
            found = await api.reward("answer 1", "answer 3")
            assert [line["status"] for line in found["clients"]] == ["ok", "ok"]
        await stop(callers)
        assert "the runs needed this client; try again later" in ended
        assert await circuits(api) == [("closed", None)] * 2


async def test_nothing_is_learned_from_a_callers_groups(start: Start, endpoints: Endpoints, redis: Redis) -> None:
    async with start(anchor_share=0.5) as api:
        for endpoint in await enrolled(api, endpoints):
            endpoint.version = "2"  # also no other model is recorded
        before = await stored(redis)
        assert (await request(api))["rewards"] is not None
        assert await stored(redis) == before
        influence = await api.ok("GET", "/v1/clients/clinic/influence")
        assert influence["objectives"] == []
        assert (await api.ok("GET", "/v1/clients/clinic"))["client"]["model"]["version"] == "1"
        await api.reward("answer 1", "answer 3")
        assert await stored(redis) != before, "a run's groups are learned from"


@given(name=st.text())
def test_no_name_of_a_token_is_that_of_the_runs(name: str) -> None:
    assert TokenCaller(name) != RUNS and TokenCaller(name) == TokenCaller(name)


async def stored(redis: Redis) -> dict[bytes, Any]:
    """Return the whole state in Redis but the lock of leadership."""
    names = [name for name in sorted(await redis.keys()) if b"leader" not in name]
    return {name: await redis.dump(name) for name in names}
