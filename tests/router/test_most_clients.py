"""Limit on clients: only those with the most weight for an input score it, in live groups and honeypots."""

from __future__ import annotations

from typing import Any

import pytest

from tests.router.conftest import Start
from tests.router.endpoints import Endpoints, words
from tests.router.planted import KINDS, question
from tests.router.test_honeypots import traffic
from tests.router.test_objectives import objective, specialists

pytestmark = pytest.mark.anyio


def questions_of_other_kinds(kind: str, calls: list[dict[str, Any]]) -> list[str]:
    texts = [words(item) for call in calls for item in call["items"]]
    assert texts
    return [text for text in texts if KINDS[kind].partition(":")[0] not in text]


async def test_each_client_scores_the_inputs_for_which_it_has_the_most_weight(
    start: Start, endpoints: Endpoints
) -> None:
    async with start(most_clients=1, anchor_share=0.5, anchor_reserve=0.3) as api:
        experts = await specialists(api, endpoints)
        await objective(api, 180)
        await api.ok("POST", "/v1/objectives/helpful/fit")
        for expert in experts.values():
            expert.calls.clear()
        found = await traffic(api, calls=4, groups=6, size=3, seed=1)
        await api.router.trust.honeypots.settled()
        for kind, expert in experts.items():
            assert questions_of_other_kinds(kind, expert.calls) == []
        for item in found:
            (weighted,) = [line for line in item["clients"] if line["status"] == "ok"]
            assert weighted["weight"] == pytest.approx(1)
            others = [line for line in item["clients"] if line["status"] == "not_asked"]
            assert {line["client"] for line in others} == set(KINDS) - {weighted["client"]}
            assert all("MOR_MOST_CLIENTS" in line["detail"] for line in others)

        messages, images = question("chart", 7)
        route = await api.ok("POST", "/v1/route", {"messages": messages, "images": images, "objective": "helpful"})
        assert {line["client"]: line["asked"] for line in route["clients"]} == {
            "chart": True,
            "medical": False,
            "detail": False,
        }


async def test_without_a_gate_the_limit_on_clients_holds_too(start: Start, endpoints: Endpoints) -> None:
    async with start(most_clients=2) as api:
        for name in ("a", "b", "c"):
            await api.enrol(endpoints.endpoint(name))
        item = await api.reward("one", "two two")
        assert item["status"] == "ok"
        assert [line["status"] for line in item["clients"]].count("ok") == 2
