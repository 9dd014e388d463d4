"""Nothing in the router grows by names and versions of models, errors or cookies, which a client chooses."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.responses import JSONResponse, Response
from mor_core.wire import ModelRef
from mor_router.audit import AuditLog
from mor_router.clients.change_limit import ChangeLimit
from mor_router.clients.honeypot_scores import HoneypotScores, scored_now
from mor_router.store import CLIENTS, key
from prometheus_client import REGISTRY, generate_latest
from redis.asyncio import Redis

from tests.router.conftest import Api, Start, eventually
from tests.router.endpoints import TOKEN, Endpoint, Endpoints, html
from tests.router.planted import jsonl, rows
from tests.router.test_objectives import objective, upload
from tests.router.test_scoring import line, two

pytestmark = pytest.mark.anyio

RESPONSES = [f"answer {i}" for i in range(16)]
WARM_UP = 40
"""Calls after which the recent scores are at their bound of 32 calls."""


def renaming(endpoint: Endpoint) -> None:
    """Let a client name a new model version, and set a new cookie, at each call."""
    numbers = itertools.count()

    def answer(body: dict[str, Any]) -> Response:
        number = next(numbers)
        items = [
            {"item_id": x["item_id"], "status": "ok", "scores": [1.0] * len(x["responses"])} for x in body["items"]
        ]
        model = {"name": "m" * 200, "version": f"{number:0200d}"}
        response = JSONResponse({"model": model, "items": items})
        response.set_cookie(f"cookie-{number}", "c" * 1000)
        return response

    endpoint.broken = answer


async def sizes(redis: Redis, audit: Path) -> dict[str, int]:
    """Sizes of what the router keeps; the traces of influence are a list of 2,000 numbers for each client."""
    keys: Any = await redis.keys("mor:{router}:*")
    gc.collect()
    return {
        "Redis": sum(
            [int(await redis.memory_usage(name, samples=0) or 0) for name in keys if b"influence" not in name]
        ),
        "audit log": len(await asyncio.to_thread(audit.read_bytes)),
        "metrics": len([series for metric in REGISTRY.collect() for series in metric.samples]),
        "objects": len(gc.get_objects()),
    }


@pytest.mark.parametrize("calls", [20, pytest.param(2000, marks=pytest.mark.slow)])
async def test_a_client_that_names_a_new_version_at_each_call_makes_nothing_grow(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path, calls: int
) -> None:
    async with start() as api:
        good, bad = await two(api, endpoints)
        renaming(bad)

        async def call() -> None:
            for endpoint in (good, bad):
                del endpoint.calls[:], endpoint.headers[:-1]
            assert line(await api.reward(*RESPONSES), "bad")["status"] == "ok"

        await grows_by_a_constant(call, redis, tmp_path / "audit.jsonl", calls)
        assert "cookie" not in bad.headers[-1]


async def test_failures_of_a_client_make_nothing_grow(
    start: Start, endpoints: Endpoints, redis: Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with start(circuit_least_calls=10_000, circuit_calls=10_000) as api:
        good, bad = await two(api, endpoints)
        numbers = itertools.count()
        bad.broken = lambda _: JSONResponse({"detail": f"reason {next(numbers)} " + "x" * 3000}, 500)

        async def call() -> None:
            for endpoint in (good, bad):
                del endpoint.calls[:], endpoint.headers[:]
            await api.reward(*RESPONSES)

        await grows_by_a_constant(call, redis, tmp_path / "audit.jsonl", 20)
        assert capsys.readouterr().out.count("a client failed") == 1  # and a count of the others after half a minute


async def grows_by_a_constant(call: Callable[[], Awaitable[None]], redis: Redis, audit: Path, calls: int) -> None:
    """Check that after a beginning, which fills what is bounded, further calls leave all sizes as they are.

    What grows with the calls grows in each of three rounds; work in the background may add a series of metrics, or the
    objects of a module that it imports, once.
    """
    for _ in range(WARM_UP):
        await call()
    growths = []
    for _ in range(3):
        before = await sizes(redis, audit)
        for _ in range(calls):
            await call()
        after = await sizes(redis, audit)
        growths.append({name: after[name] - before[name] for name in after})
        assert growths[-1]["audit log"] == 0
        if growths[-1]["metrics"] == 0 and growths[-1]["objects"] < 1000:
            break
    assert growths[-1]["metrics"] == 0, growths
    assert growths[-1]["Redis"] < 2000
    assert growths[-1]["objects"] < 1000, growths


async def test_honeypot_scores_are_bounded_between_fits(redis: Redis) -> None:
    store, vector = HoneypotScores(redis), {"a" * 64: np.zeros(4)}
    await redis.hset(CLIENTS, "client", "{}")
    for number in range(1000):
        model = ModelRef(name="m", version=str(number))
        await store.add("o", [scored_now("client", model, 1, "a" * 64, (1.0, 0.0))], vector)
    assert await redis.hlen(key("live", "o")) <= 800
    assert (await store.all("o"))[-1].model.version == "999"
    await redis.delete(CLIENTS, key("live", "o"), key("seen", "o"))


async def test_an_embedding_that_is_stored_during_a_prune_stays(redis: Redis) -> None:
    store, model = HoneypotScores(redis), ModelRef(name="m", version="1")
    for number in range(30):
        digest = f"{number:064x}"
        score = scored_now("client", model, 1, digest, (1.0, 0.0))
        await asyncio.gather(store.prune("o"), store.add("o", [score], {digest: np.zeros(4)}))
        assert len(await store.embeddings("o")) == number + 1
    await redis.delete(key("live", "o"), key("seen", "o"))


async def test_cached_anchor_scores_are_those_of_the_present_model(
    api: Api, endpoints: Endpoints, redis: Redis
) -> None:
    good, other = endpoints.endpoint("good"), endpoints.endpoint("other")
    await api.enrol(good)
    await api.enrol(other)
    await objective(api, 24)
    found = []
    for version in "123":
        good.version = version
        await api.ok("POST", "/v1/objectives/helpful/fit")
        names: Any = await redis.hkeys(key("scores", "helpful"))
        found.append(len(names))
    assert found == [found[0]] * 3
    assert {json.loads(name)[2] for name in names if json.loads(name)[0] == "good"} == {"3"}


async def test_nothing_is_left_of_a_removed_client(api: Api, endpoints: Endpoints, redis: Redis) -> None:
    await api.enrol(endpoints.endpoint("other"))
    before = set(await redis.keys("mor:{router}:*"))
    await api.enrol(endpoints.endpoint("good"))
    await objective(api, 24)
    await api.ok("POST", "/v1/objectives/helpful/fit")
    await api.reward("answer 1", "answer 3")
    await api.ok("DELETE", "/v1/clients/good")
    for name in set(await redis.keys("mor:{router}:*")) - before:
        if await redis.type(name) == b"hash" and not name.startswith(b"mor:{router}:gates"):
            assert not [field for field in await redis.hkeys(name) if b"good" in field], name
        assert b"good" not in name
    assert b'client="good"' not in generate_latest(REGISTRY)


async def test_a_refused_enrolment_leaves_no_metrics(api: Api, endpoints: Endpoints) -> None:
    endpoint = endpoints.endpoint("fake")
    endpoint.broken = html
    for number in range(3):
        body = {"name": f"fake-{number}", "url": endpoint.url, "token": TOKEN}
        assert (await api.call("POST", "/v1/clients", body)).status_code == 422
    assert b"fake-" not in generate_latest(REGISTRY)


async def test_a_client_that_leaves_during_a_fit_does_not_fail_it(api: Api, endpoints: Endpoints) -> None:
    good, leaving = endpoints.endpoint("good"), endpoints.endpoint("leaving")
    await api.enrol(good)
    token = (await api.enrol(leaving, state="probation"))["token"]
    await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer what was asked."})
    assert (await upload(api, jsonl(rows(40, images=False)))).is_success
    leaving.delay_s = 0.2
    fitting = asyncio.create_task(api.call("POST", "/v1/objectives/helpful/fit"))

    async def called() -> bool:
        return bool(leaving.calls)

    await eventually(called)
    await api.ok("DELETE", "/v1/clients/leaving", token=token)
    answer = await fitting
    assert answer.status_code == 200, answer.text
    assert list(answer.json()["models"]) == ["good"]


def test_a_line_of_the_audit_log_is_bounded_and_the_file_may_be_moved_away(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.jsonl")
    audit.record("drift", "client", "router", reason="r" * 100_000)
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit.jsonl.1")
    audit.record("drift", "client", "router", reason="short")
    assert len((tmp_path / "audit.jsonl.1").read_text()) < 2200
    assert json.loads((tmp_path / "audit.jsonl").read_text())["reason"] == "short"


def test_changes_are_limited_by_client_and_time() -> None:
    now = 0.0
    limit = ChangeLimit(2, 60, lambda: now)
    assert [limit.take("a") for _ in range(3)] == ["record", "record the last one", "drop"]
    assert limit.take("b") == "record"
    now = 61.0
    assert limit.take("a") == "record"
