"""A deleted run is gone for everybody at once and wholly in the end, also where run control is killed in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mor_core.runs import Heartbeat, RunSpec, RunState
from mor_core.streams import key
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.control import run_deletion
from mor_trainer.control.database import Database
from mor_trainer.control.history_schema import SCHEMAS
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.trainer.control import Worker, claim, create, eventually
from tests.trainer.databases import database_url, open_database, postgresql  # noqa: F401
from tests.trainer.kit import bearer, running
from tests.trainer.test_retention import fill
from tests.trainer.test_status import sample

pytestmark = pytest.mark.anyio

_TABLES = [word for word in " ".join(SCHEMAS).split() if word in {*run_deletion._TABLES, "runs", "deletions"}]


class Killed(BaseException):
    """End of a process at some moment of its work."""


@asynccontextmanager
async def control(settings: ControlSettings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    app = create_app(settings)
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        yield app, http


async def ended_run(
    app: FastAPI, http: httpx.AsyncClient, redis: Redis, spec: RunSpec, settings: ControlSettings
) -> str:
    """Make a run with rows in each table, files of each kind, keys and blobs, and end it."""
    run = await create(http, spec)
    worker = Worker(redis, run, (await claim(http))["attempt"])
    await worker.report("state", 0, {"name": "started", "from_step": 0})
    await worker.step(1, reward=0.5)
    await worker.report("evaluation", 1, {"reward": 0.5})
    groups = [sample("alpha") | {"images": [64 * "0"]}]
    await worker.report("samples", 1, {"groups": groups, "thumbnails": {64 * "0": "QUJD"}})
    letter = {"stage": "router", "stream": "rollouts", "attempts": 5, "record": "{}"}
    await worker.report("alert", 1, {"name": "group_dropped", "reason": "no", "group_id": "000a", "letter": letter})
    await eventually(http, f"/v1/runs/{run}/dead", bool)
    app.state.runs.beat(run, Heartbeat(attempt=1, state=RunState.failed, error="it had to"))
    fill(settings.runs_dir, run)
    assert settings.blob_dir is not None
    blob = Path(settings.blob_dir) / run / "ab" / ("ab" + 62 * "0")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"picture")
    await redis.set(key(run, "attempt"), 1)
    return run


async def left(settings: ControlSettings, redis: Redis, run: str) -> set[str]:
    """Return what is left of a run anywhere."""
    assert settings.database_url is not None
    database = open_database(settings.database_url.get_secret_value())
    try:
        found = {
            table
            for table in set(_TABLES)
            if database.row(f"SELECT 1 FROM {table} WHERE {'id' if table == 'runs' else 'run'}=:run", run=run)
        }
    finally:
        database.close()
    found |= {path.name for path in settings.runs_dir.glob(f"*{run}*")}
    found |= {path.name for path in settings.runs_dir.parent.glob(f"blobs/{run}*")}
    return found | {name.decode() for name in await redis.keys(key(run, "*"))}


@pytest.fixture
def settings(settings: ControlSettings, tmp_path: Path, database_url: str) -> ControlSettings:  # noqa: F811
    (tmp_path / "blobs").mkdir()
    return settings.model_copy(update={"blob_dir": str(tmp_path / "blobs"), "database_url": SecretStr(database_url)})


async def test_everything_goes_and_nothing_of_other_runs(
    settings: ControlSettings, redis: Redis, spec: RunSpec
) -> None:
    async with control(settings) as (app, http):
        run = await ended_run(app, http, redis, spec, settings)
        other = await ended_run(app, http, redis, spec, settings)
        before = await http.get(f"/v1/runs/{run}/metrics")
        asked = (await http.delete(f"/v1/runs/{run}?dry_run=true")).raise_for_status().json()
        assert asked["dry_run"] and asked["files"] == 6 and asked["bytes"] > 5000
        assert (await http.get(f"/v1/runs/{run}")).status_code == 200
        freed = (await http.delete(f"/v1/runs/{run}")).raise_for_status().json()
        assert (freed["bytes"], freed["files"]) == (asked["bytes"], asked["files"])
        for path in ("", "/metrics", "/events", "/samples", "/checkpoints", "/dead", "/spec"):
            reply = await http.get(f"/v1/runs/{run}{path}", headers={"If-None-Match": before.headers["etag"]})
            assert reply.status_code == 404, path
        assert [one["id"] for one in (await http.get("/v1/runs")).json()] == [other]
        await finished(http)
        kept = {one["run"] for one in (await http.get("/v1/storage")).json()["runs"]}
        assert kept == {other}
        assert (await http.delete(f"/v1/runs/{run}")).status_code == 404
    assert await left(settings, redis, run) == set()
    assert {*run_deletion._TABLES, "runs", other} <= await left(settings, redis, other)


async def test_a_run_that_is_not_over_is_refused_with_the_cure(
    settings: ControlSettings, redis: Redis, spec: RunSpec
) -> None:
    del redis
    async with control(settings) as (_, http):
        queued = await create(http, spec)
        refused = await http.delete(f"/v1/runs/{queued}")
        assert refused.status_code == 409 and f"mor run stop {queued}" in refused.json()["detail"]
        for action in ("archive", "prune", "exports"):
            refused = await http.post(f"/v1/runs/{queued}/{action}")
            assert refused.status_code == 409 and f"mor run stop {queued}" in refused.json()["detail"]
        await claim(http)
        refused = await http.delete(f"/v1/runs/{queued}")
        assert refused.status_code == 409 and "is running" in refused.json()["detail"]
        for scope in ("viewer", "service", "client"):
            for method, path in (
                ("DELETE", ""), ("POST", "/prune"), ("POST", "/archive"), ("POST", "/unarchive"), ("POST", "/exports"),
            ):  # fmt: skip
                reply = await http.request(method, f"/v1/runs/{queued}{path}", headers=bearer(scope))
                assert reply.status_code == 403, (scope, path)


async def test_a_follower_of_a_deleted_run_comes_to_an_end(
    settings: ControlSettings, redis: Redis, spec: RunSpec
) -> None:
    async with control(settings) as (app, http):
        run = await ended_run(app, http, redis, spec, settings)

        async def follow() -> None:
            async with http.stream("GET", f"/v1/runs/{run}/events") as reply:
                async for _ in reply.aiter_lines():
                    pass

        following = asyncio.create_task(follow())
        await asyncio.sleep(0.2)
        await http.delete(f"/v1/runs/{run}")
        async with asyncio.timeout(60):
            await following


_STEPS: dict[str, tuple[Any, str]] = {
    "files": (run_deletion.atomic, "remove"),
    "keys": (run_deletion, "delete_run_keys"),
    "blobs": (run_deletion, "delete_run"),
    "rows": (Database, "write"),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", _STEPS)
async def test_a_deletion_that_is_cut_off_is_finished_by_the_next_run_control(
    settings: ControlSettings, redis: Redis, spec: RunSpec, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    async with control(settings) as (app, http):
        run = await ended_run(app, http, redis, spec, settings)
        deletion = app.state.run_deletion
        monkeypatch.setattr(deletion._wanted, "set", lambda: None)  # nobody else finishes it meanwhile
        await deletion.delete(run, "ops")
        owner, name = _STEPS[step]
        # On a thread, what is no Exception comes out as a RuntimeError.
        with monkeypatch.context() as cut, pytest.raises((Killed, RuntimeError), match="Killed"):
            cut.setattr(owner, name, _killed(getattr(owner, name), when))
            await deletion._finish(run, redis)
        assert (await http.get(f"/v1/runs/{run}")).status_code == 404
        assert deletion.pending() == [run]
    async with control(settings) as (_, http):
        await finished(http)
    assert await left(settings, redis, run) == set()


async def finished(http: httpx.AsyncClient) -> None:
    """Wait until nothing of a deleted run is left."""
    for _ in range(600):
        reply = await http.get("/v1/storage")
        if reply.status_code == 200 and not reply.json()["deleting"]:
            return
        await asyncio.sleep(0.1)
    pytest.fail(reply.text)


def _killed(method: Callable[..., Any], when: str) -> Callable[..., Any]:
    if asyncio.iscoroutinefunction(method):

        async def cut(*given: Any, **named: Any) -> Any:
            if when == "after":
                await method(*given, **named)
            raise Killed("Killed")

        return cut

    def cut_off(*given: Any, **named: Any) -> Any:
        if when == "after":
            method(*given, **named)
        raise Killed("Killed")

    return cut_off
