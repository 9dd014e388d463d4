"""Circuits of clients under real calls: they open after failures, close after trials, and delay no group."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from tests.router.conftest import Start, eventually
from tests.router.endpoints import Endpoints, html
from tests.router.test_scoring import line, two

pytestmark = pytest.mark.anyio


async def test_the_circuit_opens_after_failures_and_closes_after_trials(start: Start, endpoints: Endpoints) -> None:
    async with start(circuit_least_calls=3, circuit_open_s=0.4) as api:
        _, bad = await two(api, endpoints)
        bad.broken = html
        for _ in range(3):
            await api.reward("answer 1", "answer 3")
        assert len(bad.calls) == 3
        found = await api.reward("answer 1", "answer 3")
        assert line(found, "bad")["status"] == "circuit_open"
        assert "text/html" in line(found, "bad")["detail"]
        assert len(bad.calls) == 3
        assert (await api.ok("GET", "/v1/clients/bad"))["circuit"] == "open"
        assert REGISTRY.get_sample_value("mor_router_circuit_state", {"client": "bad"}) == 2
        bad.broken = None
        await asyncio.sleep(0.5)

        async def closed() -> bool:
            await api.reward("answer 1", "answer 3")
            return bool((await api.ok("GET", "/v1/clients/bad"))["circuit"] == "closed")

        await eventually(closed)
        assert line(await api.reward("answer 1", "answer 3"), "bad")["status"] == "ok"


async def test_no_group_waits_for_a_client_on_trial(start: Start, endpoints: Endpoints) -> None:
    async with start(circuit_least_calls=1, circuit_open_s=0.1) as api:
        _, bad = await two(api, endpoints)
        bad.broken = html
        await api.reward("answer 1", "answer 3")
        await asyncio.sleep(0.15)
        bad.broken, bad.delay_s, before = None, 5, bad.answered
        found = await api.reward("answer 1", "answer 3")
        assert (line(found, "bad")["status"], line(found, "good")["weight"]) == ("circuit_open", 1)
        assert "on trial" in line(found, "bad")["detail"]
        assert bad.answered == before

        async def called() -> bool:
            return bad.at_once == 1

        await eventually(called)
        await api.reward("answer 1", "answer 3")
        assert bad.at_once == 1  # one trial at a time


async def test_a_callers_short_deadline_does_not_open_a_circuit(start: Start, endpoints: Endpoints) -> None:
    async with start(circuit_least_calls=1, outage_wait_s=0.01, quorum=0.9) as api:
        _, slow = await two(api, endpoints)
        slow.delay_s = 0.3
        item = {"item_id": "g", "messages": [{"role": "user", "content": "?"}], "responses": ["a 1", "b 2"]}
        for _ in range(3):
            answer = await api.ok("POST", "/v1/reward", {"items": [item], "deadline_s": 0.05})
            assert line(answer["items"][0], "bad")["status"] == "timeout"
        view = await api.ok("GET", "/v1/clients/bad")
        assert (view["circuit"], view["client"]["state"]) == ("closed", "active")


async def test_failed_items_count_as_their_share_of_a_call(start: Start, endpoints: Endpoints) -> None:
    async with start(circuit_least_calls=2, circuit_failure_share=0.5) as api:
        _, bad = await two(api, endpoints)
        question = [{"role": "user", "content": "?"}]
        items = [{"item_id": f"g{i}", "messages": question, "responses": ["a 1", "b 2"]} for i in range(4)]
        for failing, circuit in ((1, "closed"), (1, "closed"), (3, "closed"), (3, "open")):
            bad.mangle = lambda lines, n=failing: [{**x, "scores": None} for x in lines[:n]] + lines[n:]
            found = await api.reward_groups(items, {})
            assert sum(line(item, "bad")["status"] == "error" for item in found) == failing
            assert (await api.ok("GET", "/v1/clients/bad"))["circuit"] == circuit


async def test_probes_close_a_circuit_without_risking_a_group(start: Start, endpoints: Endpoints) -> None:
    async with start(circuit_least_calls=1, circuit_open_s=0.2, probe_interval_s=0.3) as api:
        _, bad = await two(api, endpoints)
        bad.broken = html
        await api.reward("answer 1", "answer 3")
        assert (await api.ok("GET", "/v1/clients/bad"))["circuit"] == "open"
        bad.broken, bad.version = None, "2"

        async def closed() -> bool:
            return bool((await api.ok("GET", "/v1/clients/bad"))["circuit"] == "closed")

        async def noted() -> bool:
            return bool((await api.ok("GET", "/v1/clients/bad"))["client"]["model"]["version"] == "2")

        await eventually(closed)
        await eventually(noted)
