"""Spans that a router adds to the trace of a group, and the part of the trace that its clients see."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from mor_core import tracing
from mor_core.wire import Message, ScoreItem
from mor_router.clients.scoring import ScoreBatch, ScoreRequester
from redis.asyncio import Redis

from tests.collector import Collector, traced
from tests.router.conftest import TOKENS, Api, Start, eventually
from tests.router.endpoints import Endpoint, Endpoints
from tests.router.test_reward_stage import all_of, count, publish, rollout, working

pytestmark = pytest.mark.anyio


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with traced("mor-router", monkeypatch) as collector:
        yield collector


async def arrived(collector: Collector, name: str, number: int) -> None:
    async def there() -> bool:
        return len(collector.named(name)) >= number

    await eventually(there)


async def test_each_group_has_its_spans_and_a_shared_request_belongs_to_the_first(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str, collector: Collector
) -> None:
    one, other = endpoints.endpoint("one"), endpoints.endpoint("other")
    async with working(start, run_name, batch_groups=2) as (api, side):
        groups = {name: tracing.begin("group", parent="", group=name) for name in ("g1", "g2")}
        sent = [
            rollout(run_name, name, ("answer 1", "answer 2")).model_copy(update={"trace": span.traceparent})
            for name, span in groups.items()
        ]
        await publish(side, *sent)  # no client is enrolled yet, so both wait
        await api.enrol(other, state="probation")
        await api.enrol(one)
        await count(redis, run_name, rollouts=0, rewards=2, dead=0)
        await arrived(collector, "score", 2)
        await arrived(collector, "call", 4)
    assert {record.trace for record in await all_of(redis, run_name, "rewards")} == {record.trace for record in sent}
    scores = {span.attributes["mor.group"]: span for span in collector.named("score")}
    for name, root in groups.items():
        score = scores[name]
        assert root.traceparent is not None and score.parent == root.traceparent.split("-")[2]
        below = [span for span in collector.in_trace(score.trace) if span.parent == score.id]
        assert sorted(span.name for span in below) == ["call", "call", "fuse", "gate"]
        assert {s.attributes["mor.client"] for s in below if s.name == "call"} == {"one", "other"}
        assert not any(span.failed for span in below)
    for endpoint in (one, other):
        sent_with = [headers["traceparent"] for headers in endpoint.headers if "traceparent" in headers]
        [parent] = [traceparent.split("-")[2] for traceparent in sent_with]  # without the probe at enrolment
        calls = [s for s in collector.named("call") if s.attributes["mor.client"] == endpoint.name]
        [first], [beside] = [s for s in calls if s.id == parent], [s for s in calls if s.id != parent]
        assert beside.links == (first.id,) and first.links == (scores[_other(first, scores)].id,)


def _other(call: object, scores: dict[str, object]) -> str:
    [name] = [name for name, score in scores.items() if score.trace != call.trace]  # type: ignore[attr-defined]
    return name


async def test_a_failed_client_and_a_group_given_up_are_marked_as_failed(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str, collector: Collector
) -> None:
    broken = endpoints.endpoint("broken", lambda _, response: math.nan if "poison" in response else 1.0)
    async with working(start, run_name, quorum_attempts=1, group_retry_s=0.2) as (api, side):
        await api.enrol(broken)
        await publish(side, rollout(run_name, "g1", ("poison 1", "poison 2")))
        for number in range(10):  # that the client scores these shows that the other group is at fault
            await asyncio.sleep(0.2)
            await publish(side, rollout(run_name, f"fine-{number}", ("answer 1", "answer 2")))
        await count(redis, run_name, rollouts=0, rewards=10, dead=1)
        await arrived(collector, "score", 11)
    call = next(span for span in collector.named("call") if span.failed)
    [score] = [span for span in collector.named("score") if span.failed]
    assert call.attributes["mor.status"] == "error"
    assert score.trace == "0af7651916cd43dd8448eb211c80319c", "the group's own"


async def traceparent_of(api: Api, endpoint: Endpoint, **traces: str | None) -> str:
    """Have a client score one item; return the traceparent of the request."""
    endpoint.headers.clear()
    item = ScoreItem(item_id="i", messages=(Message(role="user", content="?"),), responses=("a", "b"), objective=None)
    await ScoreRequester(api.router.clients.pool).request(endpoint.name, ScoreBatch([item], {}, traces), 5)
    [headers] = endpoint.headers
    return headers["traceparent"]


async def test_a_client_cannot_recognise_honeypots_by_their_trace(
    api: Api, endpoints: Endpoints, collector: Collector
) -> None:
    """Honeypots belong to no group: their requests have their own traces, also when they follow a live call."""
    client = endpoints.endpoint("client")
    await api.enrol(client)
    with tracing.span("live", parent="") as live:
        of_group = await traceparent_of(api, client, i=live.traceparent)
        of_anchor = await traceparent_of(api, client)
    assert live.traceparent is not None
    assert of_group.split("-")[1] == live.traceparent.split("-")[1] != of_anchor.split("-")[1]
    assert len(of_group) == len(of_anchor)
    assert of_group.split("-")[3] == of_anchor.split("-")[3]


async def test_a_fused_reward_continues_its_callers_trace(api: Api, endpoints: Endpoints, collector: Collector) -> None:
    await api.enrol(endpoints.endpoint("client"))
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    api.http.headers["traceparent"] = traceparent
    item = {"item_id": "g", "messages": [{"role": "user", "content": "?"}], "responses": ["answer 1", "answer 2"]}
    await api.ok("POST", "/v1/reward", {"items": [item]}, token=TOKENS["service"])
    await arrived(collector, "reward", 1)
    spans = {span.name: span for span in collector.in_trace("4bf92f3577b34da6a3ce929d0e0e4736")}
    assert spans["reward"].parent == "00f067aa0ba902b7"
    assert {spans[name].parent for name in ("gate", "call", "fuse")} == {spans["reward"].id}
