"""Run control and status API through the real ASGI app, events through the real streams."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from redis.asyncio import Redis

from tests.trainer.control import Worker, claim, create, eventually
from tests.trainer.kit import bearer, running

pytestmark = pytest.mark.anyio


@pytest.fixture
async def impatient(settings: ControlSettings, redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    """Run control with a lease of one second."""
    async with running(create_app(settings.model_copy(update={"run_lease_s": 1.0}))) as client:
        client.headers.update(bearer("admin"))
        yield client


async def test_values_that_are_not_known_yet_are_null(http: httpx.AsyncClient, spec: RunSpec) -> None:
    run = await create(http, spec)
    found = (await http.get(f"/v1/runs/{run}")).json()
    assert (found["state"], found["total"]) == ("queued", 10)
    for name in ("step", "progress", "eta_s", "metrics", "weights_version", "gate_version", "started_at", "final"):
        assert found[name] is None, name
    assert (await http.get(f"/v1/runs/{run}/clients")).json()["clients"] == {}
    assert [item["id"] for item in (await http.get("/v1/runs")).json()] == [run]
    assert (await http.get(f"/v1/runs/{run}/spec")).json() == spec.model_dump(mode="json")


async def test_the_check_of_the_prompts_is_shown_as_it_goes_on(http: httpx.AsyncClient, spec: RunSpec) -> None:
    run = await create(http, spec)
    assert (await http.get(f"/v1/runs/{run}")).json()["preflight"] is None
    assert (await http.get(f"/v1/runs/{run}/bad-prompts")).json() == {"run": run, "bad": 0, "listed": []}
    await claim(http)
    row = {"file": "/data/p.jsonl", "line": 3, "id": "q3", "problem": "not JSON"}
    checking = {"state": "checking", "rows": 40, "total": None, "bad": 1, "found": [row]}
    for status in (checking, checking, {**checking, "state": "done", "rows": 90, "total": 90}):
        beat = {"attempt": 1, "state": "running", "preflight": status}
        reply = await http.post(f"/v1/runs/{run}/heartbeat", json=beat, headers=bearer("service"))
        assert reply.status_code == 200, reply.text
        shown = (await http.get(f"/v1/runs/{run}")).json()
        assert shown["preflight"] == status
        assert shown["state"] == "running"


async def test_rollout_services_report_their_limits(http: httpx.AsyncClient) -> None:
    limits = {"name": "r1", "model": "/m", "max_model_len": 512, "max_images": 2, "max_image_bytes": 1 << 20}
    limits |= {"dtype": "bfloat16", "weights_bytes": 1 << 30, "weights_format": 2}
    assert (await http.get("/v1/engines")).json() == []
    for changed in (limits, {**limits, "max_images": 3}):
        reply = await http.post("/v1/engines", json=changed, headers=bearer("service"))
        assert reply.status_code == 204, reply.text
    assert (await http.get("/v1/engines")).json() == [{**limits, "max_images": 3}]
    assert (await http.post("/v1/engines", json=limits, headers=bearer("viewer"))).status_code == 403
    absurd = {**limits, "max_model_len": 0}
    assert (await http.post("/v1/engines", json=absurd, headers=bearer("service"))).status_code == 422


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_sise": 8}, "body.group_sise: unknown field; did you mean 'group_size'?"),
        ({"name": "Not A Name"}, "body.name: should be 1 to 40 lower-case letters, digits and "),
        ({"algorithm": {"loss": {"kind": "ppo"}}}, "Input should have 'kind' one of 'grpo'"),
        ({"groups_per_step": 4, "optimiser": {"updates_per_step": 3}}, "updates_per_step=3 does not divide"),
        ({"max_staleness": 4}, "keep_weights=4 is too few for max_staleness=4; set it to 6 or more"),
        ({"prompts": "/nowhere/prompts.jsonl"}, "no such file; give a .jsonl or .parquet file, a folder"),
        ({"evaluation_prompts": "/nowhere/e.jsonl"}, "/nowhere/e.jsonl: no such file"),
        ({"model": "/nowhere/model"}, "no folder '/nowhere/model'; give a checkpoint folder or a hub name"),
    ],
)
async def test_a_bad_spec_is_refused_with_the_cure(
    http: httpx.AsyncClient, spec: RunSpec, change: dict[str, Any], message: str
) -> None:
    reply = await http.post("/v1/runs", json={**spec.model_dump(mode="json"), **change})
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert message in reply.json()["detail"]
    assert (await http.get("/v1/runs")).json() == []


async def test_bad_files_are_refused_with_place_and_cure(
    http: httpx.AsyncClient, spec: RunSpec, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"promt": "misspelt"}\n')
    reply = await http.post("/v1/runs", json={**spec.model_dump(mode="json"), "prompts": str(bad)})
    assert f"{bad}:1: unknown column" in reply.json()["detail"], reply.text
    changes = {"prompts": str(bad), "prompt_columns": "prompt=promt"}
    reply = await http.post("/v1/runs", json={**spec.model_dump(mode="json"), **changes})
    assert reply.status_code == 202, reply.text
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    reply = await http.post("/v1/runs", json={**spec.model_dump(mode="json"), "model": str(tmp_path / "half")})
    assert "lacks weights (*.safetensors), a processor" in reply.json()["detail"]


async def test_each_scope_opens_its_routes_only(http: httpx.AsyncClient, spec: RunSpec) -> None:
    run = await create(http, spec)
    allowed = {
        ("GET", f"/v1/runs/{run}"): {"admin", "viewer", "service", "client"},
        ("GET", f"/v1/runs/{run}/spec"): {"admin", "viewer", "service"},
        ("GET", f"/v1/runs/{run}/metrics"): {"admin", "viewer", "service"},
        ("POST", f"/v1/runs/{run}/pause"): {"admin"},
        ("POST", "/v1/runs/claim"): {"admin", "service"},
        ("GET", f"/v1/runs/{run}/weights/0"): {"admin", "service"},
    }
    for (method, path), scopes in allowed.items():
        for scope in ("admin", "service", "viewer", "client"):
            reply = await http.request(method, path, headers=bearer(scope), json={"worker": "w"})
            assert (reply.status_code == 403) == (scope not in scopes), (path, scope, reply.text)
        assert (await http.request(method, path, headers={"Authorization": "Bearer nonsense"})).status_code == 401


async def test_an_unknown_run_is_a_problem_with_the_cure(http: httpx.AsyncClient) -> None:
    for path in ("", "/metrics", "/samples", "/clients", "/checkpoints", "/events", "/weights/3", "/weights/latest"):
        reply = await http.get(f"/v1/runs/nope{path}")
        assert reply.status_code == 404, path
        assert reply.json()["detail"] == "no run 'nope'; 'mor run list' shows all"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("/metrics?since=3", "unknown query parameter 'since'; /v1/runs/{run}/metrics takes max_points, since_step"),
        ("/metrics?since_step=-1", "query.since_step: Input should be greater than or equal to 0"),
        ("/metrics?max_points=lots", "query.max_points: Input should be a valid integer"),
        ("/samples?limit=0", "query.limit: Input should be greater than or equal to 1"),
        ("?step=3", "unknown query parameter 'step'; /v1/runs/{run} takes none"),
    ],
)
async def test_a_malformed_filter_is_a_problem_with_the_cure(
    http: httpx.AsyncClient, spec: RunSpec, query: str, message: str
) -> None:
    run = await create(http, spec)
    reply = await http.get(f"/v1/runs/{run}{query}")
    assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json")
    assert message.replace("{run}", run) in reply.json()["detail"]


async def test_an_unknown_path_is_a_problem_with_the_cure(http: httpx.AsyncClient) -> None:
    reply = await http.get("/v1/rns")
    assert (reply.status_code, reply.json()["detail"]) == (404, "no route /v1/rns; /docs lists them")


async def test_the_snapshot_answers_304_until_it_changes(http: httpx.AsyncClient, spec: RunSpec, redis: Redis) -> None:
    run = await create(http, spec)
    first = await http.get(f"/v1/runs/{run}")
    assert first.headers["cache-control"] == "no-store"
    tagged = {"If-None-Match": first.headers["etag"]}
    again = await http.get(f"/v1/runs/{run}", headers=tagged)
    assert (again.status_code, again.content) == (304, b"")
    held = await claim(http)
    changed = await http.get(f"/v1/runs/{run}", headers=tagged)
    assert changed.status_code == 200
    assert changed.json()["state"] == "running"
    await Worker(redis, run, held["attempt"]).step(1, 0.5)
    found = await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 1)
    assert found["progress"] == 0.1
    assert found["eta_s"] == pytest.approx(18)
    assert found["metrics"]["reward_mean"] == 0.5


async def test_metrics_start_after_a_step_and_are_down_sampled(
    http: httpx.AsyncClient, spec: RunSpec, redis: Redis
) -> None:
    run = await create(http, spec.model_copy(update={"steps": 30}))
    worker = Worker(redis, run, (await claim(http))["attempt"])
    for step in range(1, 31):
        await worker.step(step, step / 10)
    path = f"/v1/runs/{run}/metrics"
    whole = await eventually(http, path, lambda found: len(found["points"]) == 30)
    assert [point["step"] for point in whole["points"]] == list(range(1, 31))
    since = (await http.get(path, params={"since_step": 27})).json()
    assert [point["step"] for point in since["points"]] == [28, 29, 30]
    few = [point["step"] for point in (await http.get(path, params={"max_points": 7})).json()["points"]]
    assert len(few) <= 7
    assert few[-1] == 30
    assert len({b - a for a, b in itertools.pairwise(few)}) == 1, "evenly spaced"
    assert (await http.get(path, params={"max_points": 0})).status_code == 422


async def test_metrics_of_a_newer_worker_are_left_out_of_answers(
    http: httpx.AsyncClient, spec: RunSpec, redis: Redis
) -> None:
    run = await create(http, spec)
    worker = Worker(redis, run, (await claim(http))["attempt"])
    await worker.report("step", 1, {"kl": 0.5, "surprise": 1.0, "seconds": {"waiting": 1.0, "dreaming": 2.0}})
    found = await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 1)
    assert found["metrics"] == {"kl": 0.5, "seconds": {"waiting": 1.0}}
    [point] = (await http.get(f"/v1/runs/{run}/metrics")).json()["points"]
    assert point == {"step": 1, "at": point["at"], "kl": 0.5, "seconds": {"waiting": 1.0}}


async def test_repeated_and_reordered_events_change_nothing(
    http: httpx.AsyncClient, spec: RunSpec, redis: Redis
) -> None:
    run = await create(http, spec)
    held = await claim(http)
    worker = Worker(redis, run, held["attempt"])
    for sequence in (1, 3, 3, 1):
        await worker.report("alert", sequence, {"name": "non_finite", "reason": str(sequence)}, sequence)
    await eventually(http, "/v1/alerts", lambda found: [alert["count"] for alert in found] == [2])
    beat = {"attempt": held["attempt"], "state": "running"}
    reply = await http.post(f"/v1/runs/{run}/heartbeat", json=beat)
    assert reply.json() == {"desired": "run", "events_seen": 1, "replay": {}}, "2 is missing"
    await worker.report("alert", 2, {"name": "non_finite", "reason": "2"}, 2)
    await eventually(http, "/v1/alerts", lambda found: [alert["count"] for alert in found] == [3])
    assert (await http.post(f"/v1/runs/{run}/heartbeat", json=beat)).json()["events_seen"] == 3


async def test_a_resumed_run_replaces_the_steps_it_lost(
    impatient: httpx.AsyncClient, spec: RunSpec, redis: Redis
) -> None:
    http = impatient
    run = await create(http, spec)
    first = Worker(redis, run, (await claim(http))["attempt"])
    await first.report("state", 0, {"name": "started", "from_step": 0})
    for step in range(1, 6):
        await first.step(step, 1.0)
    await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 5)
    await eventually(http, f"/v1/runs/{run}", lambda found: found["state"] == "queued")  # the lease ended
    held = await claim(http)
    assert held["attempt"] == 2
    second = Worker(redis, run, 2)
    await second.report("state", 3, {"name": "resumed", "from_step": 3})
    await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 3)
    await first.step(6, 1.0)  # late events of the dead worker
    await first.report("state", 0, {"name": "started", "from_step": 0})
    await second.step(4, 2.0)
    await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 4)
    points = (await http.get(f"/v1/runs/{run}/metrics")).json()["points"]
    assert [(point["step"], point["reward_mean"]) for point in points] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


async def test_a_worker_that_lost_its_run_gets_a_conflict(impatient: httpx.AsyncClient, spec: RunSpec) -> None:
    http = impatient
    run = await create(http, spec)
    assert (await claim(http))["run"] == run
    assert (await http.post("/v1/runs/claim", json={"worker": "w2"})).status_code == 204
    await eventually(http, f"/v1/runs/{run}", lambda found: found["state"] == "queued")
    assert "no heartbeat for 1 s" in (await http.get(f"/v1/runs/{run}")).json()["error"]
    late = await http.post(f"/v1/runs/{run}/heartbeat", json={"attempt": 1, "state": "running"})
    assert late.status_code == 409
    assert (await claim(http))["attempt"] == 2
    late = await http.post(f"/v1/runs/{run}/heartbeat", json={"attempt": 1, "state": "finished"})
    assert late.status_code == 409
    assert (await http.get(f"/v1/runs/{run}")).json()["error"] is None


async def test_pause_resume_stop_without_a_worker(http: httpx.AsyncClient, spec: RunSpec) -> None:
    run = await create(http, spec)
    assert (await http.post(f"/v1/runs/{run}/pause")).json()["state"] == "paused"
    assert (await http.post("/v1/runs/claim", json={"worker": "w"})).status_code == 204
    assert (await http.post(f"/v1/runs/{run}/resume")).json()["state"] == "queued"
    assert (await http.post(f"/v1/runs/{run}/stop")).json()["state"] == "stopped"
    reply = await http.post(f"/v1/runs/{run}/pause")
    assert reply.status_code == 409
    assert reply.json()["detail"] == f"run {run} is stopped; only a run that is queued, running or paused can be paused"
    assert (await http.post(f"/v1/runs/{run}/resume")).json()["state"] == "queued"
    held = await claim(http)
    await http.post(f"/v1/runs/{run}/heartbeat", json={"attempt": held["attempt"], "state": "finished", "final": "/f"})
    reply = await http.post(f"/v1/runs/{run}/resume")
    assert reply.status_code == 409
    assert "is finished; create a new run to continue from /f" in reply.json()["detail"]


async def test_weight_files_are_served_whole_in_ranges_and_with_etags(
    http: httpx.AsyncClient, spec: RunSpec, settings: ControlSettings, tiny: Path
) -> None:
    import torch
    from mor_trainer.weights import version_writer

    run = await create(http, spec)
    reply = await http.get(f"/v1/runs/{run}/weights/latest")
    assert reply.status_code == 404
    assert "has published no weights yet" in reply.json()["detail"]
    tensors = {"a.weight": torch.arange(1000, dtype=torch.float32)}
    for version in (0, 1):
        version_writer.write_version(
            settings.runs_dir / run, run, version, str(tiny), model=torch.nn.Linear(1, 1), adapter=None,
            trainable=tensors, keep=4,
        )  # fmt: skip
    manifest = (await http.get(f"/v1/runs/{run}/weights/latest")).json()
    assert manifest["version"] == 1
    assert (await http.get(f"/v1/runs/{run}/weights/0")).json()["version"] == 0
    file = manifest["files"][0]
    path = f"/v1/runs/{run}/weights/1/{file['name']}"
    whole = await http.get(path)
    assert len(whole.content) == file["bytes"]
    assert whole.headers["etag"] == f'"{file["blake3"]}"'
    part = await http.get(path, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert (await http.get(path, headers={"If-None-Match": whole.headers["etag"]})).status_code == 304
    assert (await http.get(path, headers={"Range": "bytes=999999-"})).status_code == 416
    delta = manifest["delta"]
    assert delta["base"] == 0
    assert len((await http.get(f"/v1/runs/{run}/weights/1/{delta['name']}")).content) == delta["bytes"]
    for missing in ("manifest.json", "..%2F0%2Fmodel.safetensors", "other.bin"):
        reply = await http.get(f"/v1/runs/{run}/weights/1/{missing}")
        assert reply.status_code == 404, missing
    assert "keeps [0, 1], take /weights/latest" in (await http.get(f"/v1/runs/{run}/weights/9")).json()["detail"]


async def test_health_metrics_and_the_status_page(http: httpx.AsyncClient, spec: RunSpec, redis: Redis) -> None:
    run = await create(http, spec)
    worker = Worker(redis, run, (await claim(http))["attempt"])
    await worker.step(1, 0.25)
    await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 1)
    await eventually(http, "/readyz", lambda found: found["ready"])
    exported = (await http.get("/metrics")).text
    assert f'mor_trainer_reward_mean_logits{{run="{run}"}} 0.25' in exported
    assert f'mor_trainer_client_weight_ratio{{client="alpha",run="{run}"}} 1.0' in exported
    page = await http.get("/", headers={"Authorization": ""})
    assert page.status_code == 200
    assert "<title>MoR" in page.text
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text, "no external assets"
    assert len(page.content) < 40_000


async def test_the_history_survives_a_restart(settings: ControlSettings, spec: RunSpec, redis: Redis) -> None:
    async with running(create_app(settings)) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        await Worker(redis, run, (await claim(http))["attempt"]).step(1, 0.5)
        before = await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 1)
    async with running(create_app(settings)) as http:
        http.headers.update(bearer("admin"))
        assert (await http.get(f"/v1/runs/{run}")).json() == before


_NOT_FOR_PEOPLE = ("/healthz", "/readyz", "/startupz", "/metrics", "/v1/runs/claim")


async def test_openapi_has_a_valid_example_of_every_request_and_answer(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).raise_for_status().json()
    schemas = document["components"]["schemas"]
    checked = 0
    for path, methods in document["paths"].items():
        if path in _NOT_FOR_PEOPLE or path.endswith("/heartbeat") or "/weights/" in path:
            continue
        for route in methods.values():
            answers = [answer for status, answer in route["responses"].items() if status.startswith("2")]
            for part in [*answers, *([route["requestBody"]] if "requestBody" in route else [])]:
                for schema in (
                    content["schema"] for kind, content in part.get("content", {}).items() if "json" in kind
                ):
                    name = re.search(r"schemas/(\w+)", json.dumps(schema))
                    assert name is not None, (path, schema)
                    found = schemas[name[1]]
                    if found.get("type") == "array":
                        found = schemas[found["items"]["$ref"].rpartition("/")[2]]
                    assert found.get("examples"), f"{path}: {name[1]} has no example"
                    for example in found["examples"]:
                        whole = dict.fromkeys(found.get("required", ())) | example  # FastAPI leaves nulls out
                        Draft202012Validator({**found, "components": document["components"]}).validate(whole)
                    checked += 1
    assert checked > 20
