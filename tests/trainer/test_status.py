"""Status of a run for pollers, clients and operators: polling, redaction, samples, alerts, webhook, facts."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator
from mor_core.auth import hash_token
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.control.database import Database
from mor_trainer.control.history_schema import SCHEMAS
from mor_trainer.reporting.thumbnails import encode_thumbnails
from mor_trainer.routes.dependencies import known_query
from PIL import Image
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.trainer.control import Worker, claim, create, eventually, lines
from tests.trainer.kit import bearer, running, served

pytestmark = pytest.mark.anyio


@pytest.fixture
async def clinic(settings: ControlSettings, redis: Redis, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Run control, with client tokens for ``alpha`` and ``beta`` in the tokens file."""
    assert settings.tokens_file is not None
    known = json.loads(settings.tokens_file.read_text())
    own = [{"name": name, "scope": "client", "sha256": hash_token(f"token of {name}")} for name in ("alpha", "beta")]
    tokens = tmp_path / "with-clients.json"
    tokens.write_text(json.dumps(known + own))
    async with running(create_app(settings.model_copy(update={"tokens_file": tokens}))) as client:
        client.headers.update(bearer("admin"))
        yield client


def of(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer token of {name}"}


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (640, 480), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


DIGEST = "ab" * 32


def step_data(alpha: float, beta: float) -> dict[str, Any]:
    clients = {
        "alpha": {"reward_mean": alpha, "raw_mean": alpha, "weight": 0.75, "failures": {}, "failures_total": {}},
        "beta": {"reward_mean": beta, "raw_mean": beta, "weight": 0.25, "failures": {"timeout": 1}},
    }
    domains = {"charts": {"groups": 2, "reward_mean": 0.1, "weights": {"alpha": 0.9, "beta": 0.1}}}
    return {"reward_mean": alpha + beta, "step_seconds": 2.0, "seconds": {}, "clients": clients, "domains": domains}


def sample(*clients: str) -> dict[str, Any]:
    return {
        "group_id": "g", "prompt_id": "p", "domain": None, "prompt": "user: what?", "images": [DIGEST],
        "weights_version": 1, "gate_version": 1, "fusion": "weighted", "responses": ["a", "b"],
        "rewards": [1.0, -1.0], "advantages": [0.7, -0.7],
        "clients": [{"client": c, "status": "ok", "weight": 0.5, "raw": [2.0, 1.0], "calibrated": [1.0, -1.0]}
                    for c in clients],
    }  # fmt: skip


async def trained(http: httpx.AsyncClient, spec: RunSpec, redis: Redis) -> tuple[str, Worker]:
    """A run with two steps and their samples."""
    run = await create(http, spec)
    worker = Worker(redis, run, (await claim(http))["attempt"])
    for number in (1, 2):
        groups = [sample("alpha", "beta"), sample("beta")]
        await worker.report("samples", number, {"groups": groups, "thumbnails": encode_thumbnails({DIGEST: picture()})})
        await worker.report("step", number, step_data(0.1 * number, -0.1 * number))
    await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 2)
    return run, worker


async def test_the_snapshot_has_a_status_in_kubeflows_shape(
    http: httpx.AsyncClient, spec: RunSpec, redis: Redis
) -> None:
    run, _ = await trained(http, spec, redis)
    found = (await http.get(f"/v1/runs/{run}")).json()
    status = found["trainer_status"]
    assert (status["progressPercentage"], status["estimatedRemainingSeconds"]) == (20, 16)
    assert {"name": "step_seconds", "value": "2"} in status["metrics"]
    assert all(isinstance(metric["value"], str) for metric in status["metrics"])
    assert status["lastUpdatedTime"].endswith("Z")


async def test_every_route_of_a_run_answers_304_until_it_changes(
    http: httpx.AsyncClient, spec: RunSpec, redis: Redis
) -> None:
    run, worker = await trained(http, spec, redis)
    paths = [
        "/v1/runs",
        *(f"/v1/runs/{run}{part}" for part in ("", "/metrics", "/samples", "/clients", "/clients/alpha")),
    ]
    tags = {path: (await http.get(path)).headers["etag"] for path in paths}
    for path, tag in tags.items():
        again = await http.get(path, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b""), path
        assert again.headers["cache-control"] == "no-store"
        assert again.headers["vary"] == "Authorization"
    await worker.report("step", 3, step_data(0.3, -0.3))
    await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 3)
    for path, tag in tags.items():
        assert (await http.get(path, headers={"If-None-Match": tag})).status_code == 200, path


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({"Authorization": ""}, "", 401),
        ({"Authorization": "Bearer nobody's"}, "", 401),
        (bearer("enrolment"), "", 403),
        ({}, "?verbose=yes", 422),
    ],
    ids=["no token", "an unknown token", "a token that may not", "an unknown parameter"],
)
async def test_an_etag_does_not_replace_authorisation(
    http: httpx.AsyncClient, spec: RunSpec, headers: dict[str, str], query: str, status: int
) -> None:
    run = await create(http, spec)
    for tag in ((await http.get(f"/v1/runs/{run}")).headers["etag"], "*"):
        reply = await http.get(f"/v1/runs/{run}{query}", headers={"If-None-Match": tag, **headers})
        assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")


async def test_a_long_history_is_sent_compressed(http: httpx.AsyncClient, spec: RunSpec, redis: Redis) -> None:
    run, worker = await trained(http, spec.model_copy(update={"steps": 80}), redis)
    for number in range(3, 81):
        await worker.report("step", number, step_data(0.1 * number, -0.1 * number))
    await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 80)
    path = f"/v1/runs/{run}/metrics"
    small = await http.get(path)
    whole = await http.get(path, headers={"Accept-Encoding": "identity"})
    assert (small.headers["content-encoding"], small.headers["vary"]) == ("gzip", "Authorization, Accept-Encoding")
    assert "content-encoding" not in whole.headers
    assert small.json() == whole.json()
    assert int(small.headers["content-length"]) < len(whole.content) / 4
    for reply in (small, whole):
        again = await http.get(path, headers={"If-None-Match": reply.headers["etag"]})
        assert again.status_code == 304


async def test_samples_show_their_pictures(http: httpx.AsyncClient, spec: RunSpec, redis: Redis) -> None:
    run, _ = await trained(http, spec, redis)
    found = (await http.get(f"/v1/runs/{run}/samples?limit=1")).json()["samples"][0]
    assert found["images"] == [DIGEST]
    reply = await http.get(f"/v1/runs/{run}/images/{DIGEST}")
    assert reply.headers["content-type"] == "image/jpeg"
    assert reply.headers["cache-control"] == "no-store"
    with Image.open(io.BytesIO(reply.content)) as shown:
        assert shown.size == (192, 144)
    assert (await http.get(f"/v1/runs/{run}/images/{'cd' * 32}")).status_code == 404
    assert (await http.get(f"/v1/runs/{run}/images/..%2Fx")).status_code in (404, 422)


async def test_a_client_sees_its_own_figures_only(clinic: httpx.AsyncClient, spec: RunSpec, redis: Redis) -> None:
    run, _ = await trained(clinic, spec, redis)
    whole = (await clinic.get(f"/v1/runs/{run}/clients")).json()["clients"]
    assert set(whole) == {"alpha", "beta"}
    own = (await clinic.get(f"/v1/runs/{run}/clients", headers=of("beta"))).json()["clients"]
    assert own == {"beta": whole["beta"]}
    history = (await clinic.get(f"/v1/runs/{run}/clients/beta", headers=of("beta"))).json()
    assert [point["reward_mean"] for point in history["points"]] == [-0.1, -0.2]
    assert history["weight_by_domain"] == {"charts": 0.1}
    for path in ("", "/samples", "/clients", "/clients/beta"):
        text = (await clinic.get(f"/v1/runs/{run}{path}", headers=of("beta"))).text
        assert "alpha" not in text, path
    assert "alpha" not in (await clinic.get("/v1/runs", headers=of("beta"))).text
    shown = (await clinic.get(f"/v1/runs/{run}/samples", headers=of("alpha"))).json()["samples"]
    assert len(shown) == 2, "the groups that it scored"
    assert all(group["rewards"] is None and group["advantages"] is None for group in shown)
    refused = await clinic.get(f"/v1/runs/{run}/clients/alpha", headers=of("beta"))
    assert (refused.status_code, "shows its own figures only" in refused.json()["detail"]) == (403, True)
    for path in ("/metrics", "/events", "/spec", "/checkpoints", "/dead"):
        assert (await clinic.get(f"/v1/runs/{run}{path}", headers=of("beta"))).status_code == 403, path
    assert (await clinic.get("/v1/alerts", headers=of("beta"))).status_code == 403
    tag = (await clinic.get(f"/v1/runs/{run}")).headers["etag"]
    other = await clinic.get(f"/v1/runs/{run}", headers={"If-None-Match": tag, **of("beta")})
    assert other.status_code == 200, "what one caller has is not what another has"


async def test_a_cursor_older_than_the_kept_events_gets_a_gap(
    settings: ControlSettings, spec: RunSpec, redis: Redis
) -> None:
    app = create_app(settings.model_copy(update={"events_kept": 100}))
    async with served(app) as address, httpx.AsyncClient(base_url=address) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec.model_copy(update={"steps": 130}))
        cursor = (await http.get(f"/v1/runs/{run}")).json()["cursor"]
        worker = Worker(redis, run, (await claim(http))["attempt"])
        for number in range(1, 131):
            await worker.report("checkpoint", number, {"path": str(number)})

        def number(of: str) -> int:
            return int(of.rpartition("/")[2])

        whole = number(cursor) + 1 + 130  # the claim is an event too
        await eventually(http, f"/v1/runs/{run}", lambda found: number(found["cursor"]) >= whole)
        first = await lines(http, run, 2, cursor)
        assert [event["event"] for event in first] == ["gap", "checkpoint"]
        assert json.loads(first[1]["data"])["step"] == 31
        assert (await lines(http, run, 1, first[0]["id"]))[0]["event"] == "checkpoint", (
            "sent once to a reader that follows on"
        )


async def test_open_event_streams_are_bounded(settings: ControlSettings, spec: RunSpec, redis: Redis) -> None:
    app = create_app(settings.model_copy(update={"max_event_readers": 1}))
    async with served(app) as address, httpx.AsyncClient(base_url=address, headers=bearer("admin")) as http:
        run = await create(http, spec)
        async with http.stream("GET", f"/v1/runs/{run}/events", headers={"Last-Event-ID": f"{run}/0"}) as reply:
            content = reply.aiter_raw()  # kept: a generator that is collected closes the stream
            await anext(content)  # the first event: the reader is counted
            full = await http.get(f"/v1/runs/{run}/events")
            assert (full.status_code, full.headers["retry-after"]) == (503, "10")


async def test_alerts_are_one_entry_until_acknowledged(http: httpx.AsyncClient, spec: RunSpec, redis: Redis) -> None:
    run = await create(http, spec)
    held = await claim(http)
    worker = Worker(redis, run, held["attempt"])
    for reason in ("first", "second"):
        await worker.report("alert", 1, {"name": "non_finite", "reason": reason})
    found = await eventually(http, "/v1/alerts", lambda found: found and found[0]["count"] == 2)
    assert (found[0]["reason"], found[0]["webhook"]) == ("second", "off")
    path = f"/v1/alerts/{found[0]['id']}/acknowledge"
    assert (await http.post(path, headers=bearer("viewer"))).status_code == 403
    acknowledged = (await http.post(path, json={"note": "smaller lr"})).json()
    assert (acknowledged["acknowledged_by"], acknowledged["note"]) == ("admin", "smaller lr")
    assert (await http.post(path, json={"note": "again"})).json() == acknowledged, "twice changes nothing"
    await worker.report("alert", 2, {"name": "non_finite", "reason": "third"})
    open_ = await eventually(http, "/v1/alerts?acknowledged=false", lambda found: len(found) == 1)
    assert open_[0]["count"] == 1
    await http.post(f"/v1/runs/{run}/heartbeat", json={"attempt": 1, "state": "failed", "error": "out of memory"})
    names = [(a["name"], a["reason"]) for a in (await http.get("/v1/alerts", params={"run": run})).json()]
    assert ("run_failed", "out of memory") in names
    assert (await http.get("/v1/alerts?run=nope")).status_code == 404
    assert (await http.get("/v1/alerts/999")).status_code == 404


async def test_the_webhook_receives_an_alert_once_after_a_failed_attempt(
    settings: ControlSettings, spec: RunSpec, redis: Redis
) -> None:
    hook, received = FastAPI(), []

    @hook.post("/hook")
    async def take(request: Request) -> Response:
        received.append((request.headers["authorization"], await request.json()))
        return Response(status_code=500 if len(received) == 1 else 200)

    async with served(hook) as address:
        changes = {
            "alert_webhook_url": f"{address}/hook",
            "alert_webhook_retry_s": 0.1,
            "alert_webhook_token": SecretStr("hook-token"),
        }
        async with running(create_app(settings.model_copy(update=changes))) as http:
            http.headers.update(bearer("admin"))
            run = await create(http, spec)
            await claim(http)
            beat = {"attempt": 1, "state": "failed", "error": "out of memory"}
            await http.post(f"/v1/runs/{run}/heartbeat", json=beat)
            await eventually(http, "/v1/alerts", lambda found: found[0]["webhook"] == "sent")
            await asyncio.sleep(1)
    assert len(received) == 2
    authorization, body = received[-1]
    assert authorization == "Bearer hook-token"
    assert (body["contract"], body["alert"]["run"], body["alert"]["reason"]) == ("mor.alert/1", run, "out of memory")


async def test_a_webhook_that_never_answers_is_given_up(settings: ControlSettings, spec: RunSpec, redis: Redis) -> None:
    changes = {
        "alert_webhook_url": "http://127.0.0.1:9/hook",
        "alert_webhook_retry_s": 0.05,
        "alert_webhook_attempts": 3,
    }
    async with running(create_app(settings.model_copy(update=changes))) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        await claim(http)
        await http.post(f"/v1/runs/{run}/heartbeat", json={"attempt": 1, "state": "failed", "error": "broken"})
        await eventually(http, "/v1/alerts", lambda found: found[0]["webhook"] == "given up")


async def test_a_long_history_is_down_sampled_to_evenly_spaced_rows(
    http: httpx.AsyncClient, spec: RunSpec, settings: ControlSettings
) -> None:
    run = await create(http, spec)
    with sqlite3.connect(settings.runs_dir / "history.sqlite3") as file:
        file.executemany(
            "INSERT INTO metrics (run, step, attempt, at, data) VALUES (?, ?, 1, ?, ?)",
            ((run, number, float(number), json.dumps({"reward_mean": number})) for number in range(1, 20_001)),
        )
    found = (await http.get(f"/v1/runs/{run}/metrics?max_points=500")).json()
    assert (len(found["points"]), found["stride"], found["points"][-1]["step"]) == (500, 40, 20_000)
    few = (await http.get(f"/v1/runs/{run}/metrics?since_step=19990&max_points=500")).json()
    assert (len(few["points"]), few["stride"]) == (10, 1)


async def test_the_database_of_an_earlier_version_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    with sqlite3.connect(path) as file:
        file.executescript(f"{SCHEMAS[0]} PRAGMA user_version=1;")
        file.execute(
            "INSERT INTO runs (id, spec, state, desired, created_at, updated_at) "
            "VALUES ('r', '{}', 'queued', 'run', 1, 1)"
        )
    database = Database.of_file(path)
    assert database.row("SELECT pruned FROM runs WHERE id='r'")["pruned"] == 0  # type: ignore[index]
    assert database.rows("SELECT * FROM alerts") == []
    database.close()


async def test_workers_and_facts(http: httpx.AsyncClient, spec: RunSpec) -> None:
    await create(http, spec)
    body = {"worker": "w1", "version": "0.1.0", "device": "cpu"}
    run = (await http.post("/v1/runs/claim", json=body)).json()["run"]
    (worker,) = (await http.get("/v1/workers")).json()
    assert (worker["name"], worker["device"], worker["run"]) == ("w1", "cpu", run)
    about = (await http.get("/v1/about", headers=bearer("viewer"))).json()
    assert (about["service"], about["caller"]["scope"], about["problem"]) == ("MoR trainer", "viewer", None)
    assert abs(about["now"] - time.time()) < 60
    assert about["facts"]["disks"][0]["purpose"] == "runs"
    assert about["facts"]["queue_server"]["append_only"] is True
    assert (await http.get("/v1/about", headers=bearer("client"))).json()["facts"] is None
    assert (await http.get("/v1/about", headers={"Authorization": ""})).status_code == 401


async def test_no_dependency_of_a_route_runs_on_a_thread(settings: ControlSettings) -> None:
    """A dependency that is no coroutine runs on a thread of the pool and makes a poll several times as expensive."""
    routes = [route for route in create_app(settings).routes if isinstance(route, APIRoute)]
    given = [route.dependant for route in routes]
    for dependant in given:  # grows
        given += dependant.dependencies
    calls = {dependant.call: dependant.is_coroutine_callable for dependant in given[len(routes) :]}
    assert known_query in calls
    assert [call for call, coroutine in calls.items() if not coroutine] == []


async def test_openapi_has_a_description_and_valid_examples(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("summary"), (method, path)
    examples = 0
    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", []):
            root = {**schema, "components": document["components"]}
            completed = dict.fromkeys(schema.get("required", ())) | example  # FastAPI leaves nulls out of examples
            Draft202012Validator(root).validate(completed)
            examples += 1
            assert name
    assert examples >= 8


def test_thumbnails_are_small() -> None:
    encoded = encode_thumbnails({DIGEST: picture()})
    assert len(base64.b64decode(encoded[DIGEST])) < 4000
