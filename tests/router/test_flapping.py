"""A client that answers only now and then makes nobody else's group fail, however much weight it holds."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from fastapi.responses import JSONResponse, Response
from mor_core.wire import Message
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from tests.router.conftest import Api, Start, eventually
from tests.router.endpoints import Endpoint, Endpoints, html, never
from tests.router.hostile import constant
from tests.router.planted import KINDS, jsonl, rows
from tests.router.test_objectives import upload
from tests.router.test_reward_stage import count, publish, rollout, working

pytestmark = pytest.mark.anyio

GROUPS = 120
FAST = {
    "batch_groups": 2,
    "deadline_s": 0.25,
    "client_attempts": 1,
    "group_retry_s": 0.05,
    "circuit_open_s": 0.05,
    "outage_wait_s": 1.0,
}
"""Times of an outage, a hundred times shorter than in production."""


def mostly_failing(endpoint: Endpoint, *, every: int, seed: int) -> None:
    """Let the client answer honestly once in ``every`` calls, at random, and fail in random ways otherwise."""
    luck = random.Random(seed)
    failures = [
        lambda: JSONResponse({"detail": "out of memory"}, 500),
        lambda: JSONResponse({"detail": "later"}, 503),
        lambda: html({}),
        lambda: Response(b'{"items": [', media_type="application/json"),
        lambda: never({}),
        lambda: None,  # the items fail instead
    ]

    def call() -> Response | None:
        endpoint.mangle = None
        if luck.randrange(every) == 0:
            return None
        failure = luck.choice(failures)()
        if failure is None:
            endpoint.mangle = lambda items: [{**item, "scores": None} for item in items]
        return failure

    endpoint.sometimes = call


async def five(api: Api, endpoints: Endpoints) -> Endpoint:
    """Enrol four honest clients and one more, which is returned."""
    made = [endpoints.endpoint(f"honest-{i}") for i in range(4)] + [endpoints.endpoint("flapping")]
    for endpoint in made:
        await api.enrol(endpoint)
    return made[-1]


@pytest.mark.parametrize(
    ("every", "quorum"),
    [
        pytest.param(every, quorum, marks=() if (every, quorum) in ((2, 0.9), (5, 0.5), (8, 0.9)) else pytest.mark.slow)
        for every in range(2, 9)
        for quorum in (0.5, 0.9)
    ],
)
async def test_every_group_comes_back_and_few_calls_are_wasted(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str, every: int, quorum: float
) -> None:
    """With a quorum of 0.9 every group needs the flapping client's fifth of the weight."""
    async with working(start, run_name, quorum=quorum, **FAST) as (api, side):
        flapping = await five(api, endpoints)
        mostly_failing(flapping, every=every, seed=every)
        await publish(side, *(rollout(run_name, f"g{i}", ("answer 1", "answer 3")) for i in range(GROUPS)))
        await count(redis, run_name, rollouts=0, rewards=GROUPS, dead=0)
        assert len(flapping.calls) < 60  # of 120 groups and their retries


async def test_groups_of_an_expert_that_fails_wait_and_then_come_back_without_it(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str, tmp_path: Path
) -> None:
    """Four clients know nothing; the fifth holds most of the weight, and mostly fails after the fit."""
    async with working(start, run_name, **FAST) as (api, side):
        expert = endpoints.endpoint("expert")
        for endpoint in [*(endpoints.endpoint(f"constant-{i}", constant()) for i in range(4)), expert]:
            await api.enrol(endpoint)
        await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer what was asked."})
        assert (await upload(api, jsonl(rows(48, images=False)), "helpful")).is_success
        await api.ok("POST", "/v1/objectives/helpful/fit")
        question = KINDS["chart"].format(1)  # like the anchors: far from them every client counts the same
        body = {"messages": [{"role": "user", "content": question}], "objective": "helpful"}
        routed = await api.ok("POST", "/v1/route", body)
        assert max(routed["clients"], key=lambda line: line["weight"])["client"] == "expert"
        assert max(line["weight"] for line in routed["clients"]) > 0.5
        mostly_failing(expert, every=5, seed=1)
        sent = [rollout(run_name, f"g{i}", ("answer 1", "answer 3")) for i in range(40)]
        asked = {"objective": "helpful", "messages": (Message(role="user", content=question),)}
        sent = [r.model_copy(update={"prompt": r.prompt.model_copy(update=asked)}) for r in sent]
        await publish(side, *sent)
        await count(redis, run_name, rollouts=0, rewards=40, dead=0)
        client = (await api.ok("GET", "/v1/clients/expert"))["client"]
        assert client["state"] == "probation"
        assert client["reason"].startswith("unreliable: groups waited 1 s in vain for its scores; its last failure: ")
        assert REGISTRY.get_sample_value("mor_router_unreliable", {"client": "expert"}) == 1
        lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        assert [(line["subject"], line["state"]) for line in lines if line["action"] == "unreliable"] == [
            ("expert", "probation")
        ]


async def test_an_expert_that_returns_in_time_keeps_its_weight(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    """An outage is a wait: it costs no attempt, and no group goes without the expert."""
    async with working(start, run_name, quorum=0.9, **(FAST | {"outage_wait_s": 20, "quorum_attempts": 1})) as (
        api,
        side,
    ):
        expert = await five(api, endpoints)
        expert.broken = html
        await publish(side, *(rollout(run_name, f"g{i}", ("answer 1", "answer 3")) for i in range(6)))
        await asyncio.sleep(1)
        await count(redis, run_name, rollouts=6, rewards=0, dead=0)
        expert.broken = None
        await count(redis, run_name, rollouts=0, rewards=6, dead=0)
        assert (await api.ok("GET", "/v1/clients/flapping"))["client"]["state"] == "active"


async def test_an_unreliable_client_is_active_again_once_it_answers(start: Start, endpoints: Endpoints) -> None:
    changes = FAST | {"outage_wait_s": 0.2, "outage_share": 0.5, "circuit_least_calls": 3, "group_retry_s": 0.2}
    async with start(quorum=0.9, **changes) as api:
        flapping = await five(api, endpoints)
        flapping.broken = html
        for _ in range(3):
            await api.reward("answer 1", "answer 3")
        assert (await api.ok("GET", "/v1/clients/flapping"))["client"]["state"] == "probation"
        found = await api.reward("answer 1", "answer 3")
        assert (found["status"], len(found["rewards"])) == ("ok", 2)
        await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer what was asked."})
        assert (await upload(api, jsonl(rows(24, images=False)), "helpful")).is_success
        await api.ok("POST", "/v1/objectives/helpful/fit")
        assert (await api.ok("GET", "/v1/clients/flapping"))["client"]["state"] == "probation"  # a fit restores nothing
        flapping.broken = None

        async def restored() -> bool:
            await api.reward("answer 1", "answer 3")
            return bool((await api.ok("GET", "/v1/clients/flapping"))["client"]["state"] == "active")

        await eventually(restored)


async def test_clients_that_all_fail_are_not_unreliable(start: Start, endpoints: Endpoints) -> None:
    """The router's own network may be down if nobody answers."""
    async with start(**(FAST | {"outage_wait_s": 0.01})) as api:
        made = [endpoints.endpoint(f"client-{i}") for i in range(3)]
        for endpoint in made:
            await api.enrol(endpoint)
            endpoint.broken = html
        for _ in range(4):
            assert (await api.reward("answer 1", "answer 3"))["status"] == "error"
        assert {client["state"] for client in await api.ok("GET", "/v1/clients")} == {"active"}
