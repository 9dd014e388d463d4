"""Tokens of scope ``scorer``: fused rewards and nothing about clients, a quota, and pictures that travel once."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import pytest
from mor_core.images import sha256
from mor_router.clients.minute_quota import MinuteQuota
from PIL import Image

from tests.router.conftest import TOKENS, Api, Start
from tests.router.endpoints import Endpoints, html

pytestmark = pytest.mark.anyio

ITEM = {"item_id": "g", "messages": [{"role": "user", "content": "?"}], "responses": ["answer 1", "answer 3"]}


async def rewarded(api: Api, scope: str, item: dict[str, Any] = ITEM) -> dict[str, Any]:
    found = (await api.ok("POST", "/v1/reward", {"items": [item]}, token=TOKENS[scope]))["items"][0]
    assert isinstance(found, dict)
    return found


async def test_a_scorer_gets_fused_rewards_alone(api: Api, endpoints: Endpoints) -> None:
    clinic = endpoints.endpoint("clinic")
    await api.enrol(clinic)
    found, full = await rewarded(api, "scorer"), await rewarded(api, "service")
    assert found["rewards"] == full["rewards"] and found["rewards"][0] < found["rewards"][1]
    assert (found["clients"], found["entropy"]) == (None, None) and len(full["clients"]) == 1
    clinic.broken = html
    refused, explained = await rewarded(api, "scorer"), await rewarded(api, "service")
    assert (refused["status"], refused["rewards"]) == ("error", None)
    assert "clinic" in explained["detail"] and "clinic" not in str(refused)
    route = {"messages": ITEM["messages"]}
    for method, path, body in (("POST", "/v1/route", route), ("GET", "/v1/clients", None), ("GET", "/v1/status", None)):
        assert (await api.call(method, path, body, token=TOKENS["scorer"])).status_code == 403, path


async def test_a_scorer_has_a_quota_of_responses_for_all_replicas(start: Start, endpoints: Endpoints) -> None:
    async with start(scorer_responses_per_minute=5) as api, start(scorer_responses_per_minute=5) as replica:
        await api.enrol(endpoints.endpoint("clinic"))
        await replica.router.clients.pool.refresh()
        for running in (api, replica):
            assert (await rewarded(running, "scorer"))["status"] == "ok"
        over = await api.call("POST", "/v1/reward", {"items": [ITEM]}, token=TOKENS["scorer"])
        assert over.status_code == 429 and 0 < int(over.headers["Retry-After"]) <= 60
        assert "MOR_SCORER_RESPONSES_PER_MINUTE" in over.json()["detail"]
        verify = {
            "responses_create_params": {"input": "?"},
            "response": {"output": [{"type": "message", "content": [{"type": "output_text", "text": "a 1"}]}]},
        }
        path = "/v1/adapters/verify?group_size=1"
        assert (await api.call("POST", path, verify, token=TOKENS["scorer"])).status_code == 429
        assert (await rewarded(api, "service"))["status"] == "ok", "MoR's own processes have no quota"
        large = ITEM | {"responses": [f"answer {place}" for place in range(6)]}
        never = await api.call("POST", "/v1/reward", {"items": [large]}, token=TOKENS["scorer"])
        assert never.status_code == 422, "waiting would not help"


async def test_simultaneous_calls_are_counted_exactly_with_few_connections(api: Api) -> None:
    """A trainer's calls for the responses of a step come all at once."""
    quota = MinuteQuota(api.router.resources.redis)
    counting = [asyncio.create_task(quota.add(("test", "trainer"), 2)) for _ in range(1000)]
    await asyncio.sleep(0)
    counting[5].cancel()
    found = await asyncio.gather(*counting, return_exceptions=True)
    counts = {place: count for place, one in enumerate(found) if isinstance(one, tuple) for count, _ in [one]}
    assert counts == {place: 2 * (place + 1) for place in range(1000) if place != 5}
    assert (await quota.add(("test", "trainer"), 1))[0] == 2001


async def test_pictures_travel_once_for_each_caller(api: Api, endpoints: Endpoints) -> None:
    await api.enrol(endpoints.endpoint("clinic"))
    content = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(content, "PNG")
    digest = sha256(content.getvalue())
    shown = [{"type": "image_url", "image_url": {"url": f"sha256:{digest}"}}, {"type": "text", "text": "Which?"}]
    item = ITEM | {"messages": [{"role": "user", "content": shown}]}
    images = {digest: base64.b64encode(content.getvalue()).decode()}
    for scope in ("scorer", "service"):
        by_hash = await api.call("POST", "/v1/reward", {"items": [item]}, token=TOKENS[scope])
        assert (by_hash.status_code, by_hash.json()["missing_images"]) == (409, [digest]), "whatever others sent"
        await api.ok("POST", "/v1/reward", {"items": [item], "images": images}, token=TOKENS[scope])
        assert (await rewarded(api, scope, item))["status"] == "ok"
    weights = await api.call("POST", "/v1/route", {"messages": item["messages"]})
    assert weights.json()["missing_images"] == [digest], "the same round for /v1/route, of another token"
