"""Limits on a client's card: requests respect them, and a group beyond them costs no other group."""

from __future__ import annotations

import asyncio
import base64
import io

import pytest
from mor_core.images import sha256
from PIL import Image

from tests.router.conftest import Api, Start
from tests.router.endpoints import Endpoints
from tests.router.test_scoring import line

pytestmark = pytest.mark.anyio


async def test_requests_respect_the_limits_on_the_card(api: Api, endpoints: Endpoints) -> None:
    good = endpoints.endpoint("good")
    good.limits = {"items": 3, "responses": 4, "request_bytes": 2048, "concurrency": 2}
    await api.enrol(good)
    items = [
        {"item_id": f"g{i}", "messages": [{"role": "user", "content": "?"}], "responses": ["a 1", "b" * length]}
        for i, length in enumerate([1, 1, 1, 1, 700, 700, 700])
    ]
    answer = await api.ok("POST", "/v1/reward", {"items": items})
    assert [item["status"] for item in answer["items"]] == ["ok"] * 7
    assert [item["item_id"] for item in answer["items"]] == [f"g{i}" for i in range(7)]
    assert sorted(len(call["items"]) for call in good.calls) == [1, 1, 2, 3]


async def test_a_group_with_more_responses_than_the_card_allows_does_not_affect_the_others(
    api: Api, endpoints: Endpoints
) -> None:
    good, small = endpoints.endpoint("good"), endpoints.endpoint("small")
    small.limits = {**small.limits, "responses": 2}
    await api.enrol(good)
    await api.enrol(small)
    question, answers = [{"role": "user", "content": "?"}], ["a 1", "b 2", "c 3"]
    items = [{"item_id": f"g{size}", "messages": question, "responses": answers[:size]} for size in (2, 3)]
    pair, triple = await api.reward_groups(items, {})
    assert [line(found, "small")["status"] for found in (pair, triple)] == ["ok", "error"]
    assert line(triple, "small")["detail"] == "3 responses; its card takes 2 per item"
    assert (triple["status"], len(triple["rewards"])) == ("ok", 3)
    assert [[len(item["responses"]) for item in call["items"]] for call in small.calls] == [[2]]
    assert 'failures_total{client="small",reason="item"} 1.0' in (await api.call("GET", "/metrics")).text


async def test_a_group_with_a_larger_image_than_the_card_allows_is_unscorable_alone(
    api: Api, endpoints: Endpoints
) -> None:
    good, small = endpoints.endpoint("good"), endpoints.endpoint("small")
    small.limits = {**small.limits, "image_bytes": 1000}
    await api.enrol(good)
    await api.enrol(small)
    plain = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(plain, "PNG")
    contents = {
        name: plain.getvalue() + b"\0" * more for name, more in (("fits", 0), ("exceeds", 1001), ("fits-too", 1))
    }
    items = []
    for name, content in contents.items():
        parts = [{"type": "image_url", "image_url": {"url": f"sha256:{sha256(content)}"}}]
        items.append({"item_id": name, "messages": [{"role": "user", "content": parts}], "responses": ["a 1", "b 2"]})
    images = {sha256(content): base64.b64encode(content).decode() for content in contents.values()}
    for _ in range(8):  # often enough to open a circuit, if the item counted as a failure
        answer = await api.ok("POST", "/v1/reward", {"items": items, "images": images})
        assert [item["status"] for item in answer["items"]] == ["ok"] * 3
        assert [line(item, "small")["status"] for item in answer["items"]] == ["ok", "unscorable", "ok"]
    assert "its card takes 1000 per image" in line(answer["items"][1], "small")["detail"]


async def test_a_group_that_alone_exceeds_the_bytes_of_a_request_is_unscorable(api: Api, endpoints: Endpoints) -> None:
    good, small = endpoints.endpoint("good"), endpoints.endpoint("small")
    small.limits = {**small.limits, "request_bytes": 2048}
    await api.enrol(good)
    await api.enrol(small)
    question = [{"role": "user", "content": "?"}]
    items = [{"item_id": f"g{size}", "messages": question, "responses": ["a 1", "b" * size]} for size in (1, 4000)]
    answer = await api.ok("POST", "/v1/reward", {"items": items})
    assert [line(item, "small")["status"] for item in answer["items"]] == ["ok", "unscorable"]
    assert [len(call["items"]) for call in small.calls] == [1]


async def test_concurrency_to_one_client_is_bounded(start: Start, endpoints: Endpoints) -> None:
    async with start(client_concurrency=2) as api:
        good = endpoints.endpoint("good")
        await api.enrol(good)
        good.delay_s = 0.1
        await asyncio.gather(*(api.reward("answer 1", "answer 2") for _ in range(6)))
        assert (len(good.calls), good.most_at_once) == (6, 2)
