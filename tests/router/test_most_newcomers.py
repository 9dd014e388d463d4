"""Limit on clients on probation: whoever enrols many costs the live groups a bounded time and keeps nobody out."""

from __future__ import annotations

from collections import Counter

import pytest
from mor_router.clients.registry import ClientRecord
from mor_router.rewarding.scoring_plan import draw_newcomers

from tests.router.conftest import Start
from tests.router.endpoints import Endpoints


def record(name: str, enrolled_by: str | None) -> ClientRecord:
    return ClientRecord(
        name=name,
        url="https://example.org",
        source="api",
        state="probation",
        enrolled_at=0.0,
        secret="",
        inbound_sha256="0" * 64,
        domains="",
        enrolled_by=enrolled_by,
        revision="1",
    )


def test_the_newcomers_of_one_token_leave_room_for_those_of_others() -> None:
    records = {f"many-{i}": record(f"many-{i}", "greedy") for i in range(100)}
    records |= {"one": record("one", "modest"), "own": record("own", None)}
    drawn = [draw_newcomers(records, 8) for _ in range(200)]
    assert all(len(set(names)) == 8 and {"one", "own"} <= set(names) for names in drawn)
    assert len(Counter(name for names in drawn for name in names)) > 90, "all have their turn"
    assert sorted(draw_newcomers(records, 102)) == sorted(records)


@pytest.mark.anyio
async def test_a_group_is_scored_by_some_of_many_newcomers(start: Start, endpoints: Endpoints) -> None:
    async with start(most_newcomers=2) as api:
        await api.enrol(endpoints.endpoint("known"))
        newcomers = [endpoints.endpoint(f"new-{number}") for number in range(6)]
        for newcomer in newcomers:
            await api.enrol(newcomer, "probation")
        for number in range(24):
            item = await api.reward("one", "two two", text=f"question {number}")
            assert item["status"] == "ok"
            lines = {line["client"]: line for line in item["clients"]}
            left_out = [name for name, line in lines.items() if line["status"] == "not_asked"]
            assert len(left_out) == 4
            assert all("MOR_MOST_NEWCOMERS" in lines[name]["detail"] for name in left_out)
        await api.router.trust.honeypots.settled()
        calls = [len(newcomer.calls) for newcomer in newcomers]
        assert sum(calls) <= 48
        assert min(calls) > 0, "all have their turn"
