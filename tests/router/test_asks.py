"""``asks`` rules: a prompt that a client may not be sent never reaches it, whatever it is sent for."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
from fastapi.responses import JSONResponse, Response
from mor_core.wire import NOT_SENT, RewardItem, ScoreItem
from mor_router.clients.scoring import ScoreBatch
from mor_router.rewarding.group_batch import GroupBatch, Unrewarded

from tests.router.conftest import Api, Start, eventually
from tests.router.endpoints import TOKEN, Endpoint, Endpoints, image_names, words
from tests.router.planted import KINDS, jsonl, picture, question, rows, specialist
from tests.router.test_objectives import NDJSON, specialists
from tests.router.test_online_refit import checker_package, drafts, settings_for  # noqa: F401 - a fixture

pytestmark = pytest.mark.anyio

GOLD = {"kind": "function", "name": "gold"}


def kind_of(item: dict[str, Any]) -> str:
    return next(kind for kind, text in KINDS.items() if text.split(":")[0] in words(item))


def pictures(number: int) -> set[str]:
    return set(question(list(KINDS)[number % 3], number)[1])


def weights(found: dict[str, Any]) -> dict[str, float]:
    return {line["client"]: line["weight"] for line in found["clients"] if line["weight"]}


def received(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [item for call in endpoint.calls for item in call["items"]]


async def enrol(api: Api, endpoint: Endpoint, asks: dict[str, Any], state: str = "probation") -> None:
    body = {"name": endpoint.name, "url": endpoint.url, "token": TOKEN, "state": state, "asks": asks}
    enrolled = await api.ok("POST", "/v1/clients", body)
    assert enrolled["client"]["asks"] == {"domains": None, "public_only": False, **asks}
    endpoint.calls.clear()
    endpoint.images.clear()


async def anchors(api: Api, count: int = 120, *, public: bool) -> None:
    await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer what was asked."})
    path = f"/v1/objectives/helpful/anchors?public={json.dumps(public)}"
    stored = await api.http.put(path, content=jsonl(rows(count)), headers=NDJSON)
    assert stored.status_code == 200, stored.text


async def live(api: Api, groups: int, *, first: int, public: bool, labelled: bool = True) -> list[Any]:
    """Reward groups of a run on new questions of all kinds."""
    random = np.random.default_rng(first)
    items, images = [], dict[str, bytes]()
    for number in range(first, first + groups):
        kind = list(KINDS)[number % 3]
        messages, _ = question(kind, number)
        images |= {digest: picture(kind, number) for digest in pictures(number)}
        items.append(
            RewardItem(
                item_id=str(number),
                messages=messages,
                responses=tuple(f"answer {value}" for value in random.normal(0, 1.2, size=3).round(3)),
                objective="helpful",
                domain=kind if labelled else None,
                public=public,
            )
        )
    batch = GroupBatch(items, images, policies={item.item_id: "run-1:7" for item in items})
    outcomes, _ = await api.router.rewarding.pipeline.reward(batch, 10)
    await api.router.trust.auditor.settled()
    return outcomes


async def test_no_prompt_reaches_a_client_that_may_not_be_sent_it(
    start: Start,
    endpoints: Endpoints,
    checker_package: None,  # noqa: F811
) -> None:
    """Through fits, honeypots, audits, probation and refits, by the operator's rule and by the client's own wish."""
    policy = settings_for(drafts(endpoints))
    async with start(anchor_share=0.4, anchor_reserve=0.4, audit_share=0.5, **policy) as api:
        chart = endpoints.endpoint("chart", specialist("chart"))
        medical = endpoints.endpoint("medical", specialist("medical"))
        detail = endpoints.endpoint("detail", specialist("detail"))
        detail.asks = {"public_only": True}
        for endpoint, rule in ((chart, {}), (medical, {"domains": ["medical"]}), (detail, {})):
            await enrol(api, endpoint, rule)
        await anchors(api, public=False)
        await api.ok("PUT", "/v1/objectives/helpful/labeller", GOLD)
        await live(api, 12, first=1000, public=False)
        gate = await api.ok("POST", "/v1/objectives/helpful/fit")
        assert gate["report"]["left_out"].keys() == {"detail"}, "none of the anchors is public"
        for step in range(6):
            await live(api, 12, first=2000 + 12 * step, public=step % 2 == 0)
        await live(api, 6, first=3000, public=False, labelled=False)
        await api.router.trust.honeypots.settled()
        await api.router.learning.audit_labelling.turn()
        assert (await api.ok("GET", "/v1/objectives/helpful/audits"))["labelled"] > 0
        assert (await api.ok("POST", "/v1/objectives/helpful/refit"))["refitted"]["labelled"] > 0
        for step in range(4):
            await live(api, 12, first=4000 + 12 * step, public=False)
        await api.router.trust.honeypots.settled()

        assert {kind_of(item) for item in received(chart)} == set(KINDS), "it has no rule"
        assert {kind_of(item) for item in received(medical)} == {"medical"}
        public = {image for first in (2000, 2024, 2048) for n in range(12) for image in pictures(first + n)}
        assert {image for item in received(detail) for image in image_names(item)} == public
        assert detail.images.keys() == public


async def test_a_client_that_may_not_be_sent_a_group_is_not_missed_there(api: Api, endpoints: Endpoints) -> None:
    """The others share the weight, the quorum is over them, and nobody waits for it or counts a failure."""
    made = await specialists(api, endpoints)
    await anchors(api, 63, public=True)
    await api.ok("POST", "/v1/objectives/helpful/fit")
    messages, images = question("medical", 500)
    group = {"item_id": "g", "messages": messages, "responses": ["answer 1", "answer -1"], "objective": "helpful"}
    [whole] = await api.reward_groups([group | {"domain": "medical"}], images)
    assert weights(whole)["medical"] > 0.5, "without it there would be no quorum"
    await api.ok("PATCH", "/v1/clients/medical", {"asks": {"domains": ["chart"]}})
    made["medical"].calls.clear()
    for origin in ({"domain": "medical"}, {}):
        [found] = await api.reward_groups([group | origin], images)
        assert found["status"] == "ok"
        assert weights(found).keys() == {"chart", "detail"}
        assert sum(weights(found).values()) == pytest.approx(1)
        line = next(line for line in found["clients"] if line["client"] == "medical")
        assert line["status"] == "not_asked"
        assert line["detail"].startswith(f"{NOT_SENT}by its rule: ")
    route = await api.ok("POST", "/v1/route", {"messages": messages, "images": images, "objective": "helpful"})
    line = next(line for line in route["clients"] if line["client"] == "medical")
    assert (line["asked"], line["weight"]) == (False, 0)
    assert received(made["medical"]) == []
    status = await api.ok("GET", "/v1/clients/medical")
    assert (status["circuit"], status["last_error"], status["client"]["state"]) == ("closed", None, "active")
    await api.ok("PATCH", "/v1/clients/medical", {"asks": {}})
    [again] = await api.reward_groups([group], images)
    assert again["rewards"] == whole["rewards"]


async def test_a_rule_that_changes_during_a_call_is_honoured(api: Api, endpoints: Endpoints) -> None:
    made = await specialists(api, endpoints)
    batch = ScoreBatch([ScoreItem(item_id="g", messages=[{"role": "user", "content": "?"}], responses=("a", "b"))], {})
    asked = await api.router.clients.requester.request("chart", batch, 5)
    assert asked["g"].status == "ok"
    await api.ok("PATCH", "/v1/clients/chart", {"asks": {"public_only": True}})
    made["chart"].calls.clear()
    refused = await api.router.clients.requester.request("chart", batch, 5)
    assert refused["g"].detail == f"{NOT_SENT}by its rule: its source is not marked as public"
    assert made["chart"].calls == []


@pytest.mark.parametrize("change", [{"asks": {"public_only": True}}, {"state": "paused"}], ids=["rule", "pause"])
@pytest.mark.parametrize("waits", ["slot", "attempt", "pictures"])
async def test_what_waits_when_a_client_may_not_be_sent_it_any_more_stays(
    waits: str, change: dict[str, Any], api: Api, endpoints: Endpoints
) -> None:
    """For an earlier call to end, for the next attempt, and for the client to ask for the pictures of a prompt."""
    chart = endpoints.endpoint("chart")
    chart.limits |= {"concurrency": 1}
    refused = asyncio.Event()

    def away(_: dict[str, Any]) -> Response:
        refused.set()
        return JSONResponse({"detail": "later"}, 503, headers={"Retry-After": "1"})

    await enrol(api, chart, {}, state="active")
    chart.delay_s = 1.0
    chart.broken = away if waits == "attempt" else None
    requester = api.router.clients.requester
    messages, images = question("chart", 7)
    sent = {digest: base64.b64decode(content) for digest, content in images.items()}
    batch = ScoreBatch([ScoreItem(item_id="g", messages=messages, responses=("a", "b"))], sent)
    calls = [asyncio.create_task(requester.request("chart", batch, 20)) for _ in range(1 + (waits == "slot"))]
    while not chart.calls:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    if waits == "attempt":
        await refused.wait()
    await api.ok("PATCH", "/v1/clients/chart", change)
    await api.router.clients.pool.refresh()
    answers = [(await call)["g"] for call in calls]
    assert len(chart.calls) == 1, "nothing leaves after the change"
    assert chart.images == {}
    assert answers[-1].status == "not_asked", "its page must not show the group either"
    assert answers[-1].detail is not None
    assert answers[-1].detail.startswith(NOT_SENT if "asks" in change else "it was paused")
    assert api.router.clients.pool.circuit_state("chart") == "closed"
    assert api.router.clients.pool.last_error("chart") is None


async def test_a_group_that_nobody_may_be_sent_is_at_fault_itself(api: Api, endpoints: Endpoints) -> None:
    """Waiting for a client would not help: the group goes to the dead letters, with the reason."""
    endpoint = endpoints.endpoint("chart")
    await enrol(api, endpoint, {"domains": ["chart"]}, state="active")
    [outcome] = await live(api, 1, first=1, public=True)
    assert isinstance(outcome.result, Unrewarded)
    assert outcome.result.problem.startswith("no client may be sent this prompt")
    assert outcome.result.awaited == {}
    assert endpoint.calls == []


async def test_the_wish_on_a_card_is_read_at_each_probe(start: Start, endpoints: Endpoints) -> None:
    async with start(probe_interval_s=0.1) as api:
        endpoint = endpoints.endpoint("chart")
        await api.enrol(endpoint)
        assert (await api.reward("a", "b"))["status"] == "ok"
        endpoint.asks = {"domains": ["chart"], "public_only": True}

        async def narrowed() -> bool:
            return bool((await api.reward("a", "b"))["status"] == "error")

        await eventually(narrowed)
        endpoint.calls.clear()
        assert (await api.reward("a", "b", domain="chart"))["status"] == "error", "both conditions hold"
        assert (await api.reward("a", "b", public=True))["status"] == "error"
        assert endpoint.calls == []
        assert (await api.reward("a", "b", domain="chart", public=True))["status"] == "ok"
