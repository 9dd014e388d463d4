"""A run is created once, however often its request is sent."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path

import httpx
import pytest
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.control import run_creator

from tests.trainer.kit import bearer, running

pytestmark = pytest.mark.anyio


async def create(http: httpx.AsyncClient, spec: RunSpec, key: str | None = None, **fields: object) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await http.post("/v1/runs", json=json.loads(spec.model_dump_json()) | fields, headers=headers)


async def ids(http: httpx.AsyncClient) -> list[str]:
    return [run["id"] for run in (await http.get("/v1/runs")).json()]


async def test_a_repeated_request_returns_the_run_of_the_first(http: httpx.AsyncClient, spec: RunSpec) -> None:
    first, again = await create(http, spec, "one"), await create(http, spec, "one")
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["Location"] == f"/v1/runs/{first.json()['id']}"
    other = await create(http, spec, "two")
    assert sorted(await ids(http)) == sorted([first.json()["id"], other.json()["id"]])


async def test_requests_without_a_key_are_runs_of_their_own(http: httpx.AsyncClient, spec: RunSpec) -> None:
    await create(http, spec)
    await create(http, spec)
    assert len(await ids(http)) == 2


async def test_a_key_of_another_specification_is_refused(http: httpx.AsyncClient, spec: RunSpec) -> None:
    first = await create(http, spec, "one")
    refused = await create(http, spec, "one", steps=11)
    assert refused.status_code == 409
    assert first.json()["id"] in refused.json()["detail"]
    assert "send a new key" in refused.json()["detail"]


async def test_a_model_whose_weights_cannot_be_trained_is_refused(
    http: httpx.AsyncClient, spec: RunSpec, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(spec.model, tmp_path / "model"))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused = await create(http, spec, model=str(model))
    assert refused.status_code == 422
    assert "pickled weights" in refused.json()["detail"]
    single = await create(http, spec, model=str(model / "pytorch_model.bin"))
    assert "is a file; give the checkpoint folder" in single.json()["detail"]


async def test_a_request_that_failed_may_be_sent_again_with_its_key(
    http: httpx.AsyncClient, spec: RunSpec, tmp_path: Path, prompts: Path
) -> None:
    missing = tmp_path / "prompts.jsonl"
    assert (await create(http, spec, "one", prompts=str(missing))).status_code == 422
    missing.write_text(json.dumps({"id": "a", "prompt": "How many?", "images": []}))
    assert (await create(http, spec, "one", prompts=str(missing))).status_code == 202


@pytest.mark.parametrize("key", ["", "x" * 129, "a b", "ä"])
async def test_a_key_that_is_no_name_is_refused(http: httpx.AsyncClient, spec: RunSpec, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    reply = await http.post("/v1/runs", content=spec.model_dump_json(), headers=httpx.Headers(headers))
    assert reply.status_code == 422


async def test_a_key_is_known_after_a_restart(settings: ControlSettings, spec: RunSpec) -> None:
    async with running(create_app(settings)) as http:
        http.headers.update(bearer("admin"))
        first = await create(http, spec, "one")
    async with running(create_app(settings)) as http:
        http.headers.update(bearer("admin"))
        assert (await create(http, spec, "one")).json()["id"] == first.json()["id"]


async def test_a_request_that_is_repeated_during_its_checks_joins_them(
    http: httpx.AsyncClient, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first caller is gone when the checks end; the second gets the run."""
    release, checks = threading.Event(), []
    check = run_creator._check

    def slow(given: RunSpec) -> None:
        checks.append(given)
        assert release.wait(30)
        check(given)

    monkeypatch.setattr(run_creator, "_check", slow)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(create(http, spec, "one"), 0.2)
    second = asyncio.create_task(create(http, spec, "one"))
    changed = await create(http, spec, "one", steps=11)
    assert changed.status_code == 409
    release.set()
    assert (await second).status_code == 202
    assert len(checks) == 1
    assert len(await ids(http)) == 1


async def test_creations_at_a_time_are_bounded(
    http: httpx.AsyncClient, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(run_creator, "_check", lambda given: release.wait(30))
    waiting = [asyncio.create_task(create(http, spec, str(number))) for number in range(4)]
    await asyncio.sleep(0.2)
    refused = await create(http, spec)
    release.set()
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "5"
    assert [(await one).status_code for one in waiting] == [202] * 4
