"""Measurement of load: it stops where calls take too long, and its clients keep the contract."""

from __future__ import annotations

import asyncio
import os

import httpx
import pytest
from load.ladder import climb, cpu_seconds, summary
from load.reward_clients import TOKEN, score
from load.router_load import reward_clients

pytestmark = pytest.mark.anyio


async def test_the_load_rises_until_calls_take_too_long() -> None:
    places = asyncio.Semaphore(2)

    async def call(_: int) -> None:
        async with places:
            await asyncio.sleep(0.02)

    steps = await climb(call, [os.getpid()], seconds=0.3, bound_s=0.15, most=1024)
    assert [step.at_once for step in steps] == [2**place for place in range(len(steps))]
    assert all(step.p99_s <= 0.15 for step in steps[:-1])
    assert steps[-1].p99_s > 0.15
    found = summary(steps, 0.15)
    assert found["best"] is not None
    assert summary(steps[-1:], 0.15)["best"] is None


def test_cpu_time_is_that_of_the_processes() -> None:
    before = cpu_seconds([os.getpid()])
    while cpu_seconds([os.getpid()]) - before < 0.05:
        sum(range(100_000))
    assert cpu_seconds([]) == 0


async def test_the_clients_score_what_has_its_picture() -> None:
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"sha256:{'0' * 64}"}}]}
    request = {"items": [{"item_id": "a", "messages": [message], "responses": ["answer 1.5"]}], "images": {}}
    with reward_clients() as address:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=address, headers=headers, trust_env=False) as http:
            assert (await http.get("/3/v1/card")).json()["model"]["name"] == "client-3"
            refused = await http.post("/3/v1/score", json=request)
            assert (refused.status_code, refused.json()) == (409, {"missing_images": ["0" * 64]})
            scored = await http.post("/3/v1/score", json={**request, "images": {"0" * 64: "aGk="}})
    assert scored.json()["items"][0]["scores"] == [score("3", "answer 1.5")]
    assert abs(score("3", "answer 1.5") - 1.5) <= 1
