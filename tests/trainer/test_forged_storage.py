"""Forged rows and files lead run control to nothing outside of a run's folder, and delete nothing there."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from redis.asyncio import Redis

from tests.trainer.control import create, eventually
from tests.trainer.kit import bearer, running
from tests.trainer.test_retention import ALL, KEPT, fill, there

pytestmark = pytest.mark.anyio
_SECRET = "a file of somebody else"


async def stopped(http: httpx.AsyncClient, spec: RunSpec) -> str:
    run = await create(http, spec)
    (await http.post(f"/v1/runs/{run}/stop")).raise_for_status()
    return run


def renamed(runs_dir: Path, run: str, junk: Any) -> None:
    with sqlite3.connect(runs_dir / "history.sqlite3") as database:
        database.execute("UPDATE runs SET id=? WHERE id=?", (junk, run))
    database.close()


@pytest.mark.parametrize("junk", ["../elsewhere", "{absolute}", "..", b"\x00\xff", 7])
async def test_a_forged_id_of_a_run_deletes_no_other_files(
    settings: ControlSettings, redis: Redis, spec: RunSpec, tmp_path: Path, junk: Any
) -> None:
    del redis
    settings = settings.model_copy(update={"ended_runs_kept": 0, "runs_dir": tmp_path / "below" / "runs"})
    settings.runs_dir.mkdir(parents=True)
    elsewhere = settings.runs_dir.parent if junk == ".." else settings.runs_dir.parent / "elsewhere"
    fill(elsewhere.parent, elsewhere.name)
    app = create_app(settings)
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        forged, other = await stopped(http, spec), await stopped(http, spec)
        fill(settings.runs_dir, other)
        renamed(settings.runs_dir, forged, str(elsewhere) if junk == "{absolute}" else junk)
        await app.state.retention.sweep()
        assert there(settings.runs_dir, other) == KEPT, "the sweep goes on for the other runs"
        if isinstance(junk, str):
            for path in ("prune", "exports"):
                reply = await http.post(f"/v1/runs/{junk.replace('.', '%2e').replace('/', '%2f')}/{path}")
                assert reply.status_code == 404, reply.text
        (await http.get("/v1/storage")).raise_for_status()
    assert there(elsewhere.parent, elsewhere.name) - {"runs"} == ALL


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _list_of(name: str) -> str:
    file = {"name": name, "bytes": len(_SECRET), "sha256": 64 * "0"}
    return json.dumps({"run": "r", "name": "step-00000002", "step": 2, "state": "ready", "files": [file]})


@pytest.mark.parametrize("forge", [_pipe, _sparse], ids=["pipe", "sparse"])
async def test_a_list_of_an_export_that_is_no_plain_file_is_not_read(
    settings: ControlSettings, redis: Redis, spec: RunSpec, forge: Any
) -> None:
    del redis
    async with running(create_app(settings)) as http:
        http.headers.update(bearer("admin"))
        run = await stopped(http, spec)
        exports = settings.runs_dir / run / "exports"
        exports.mkdir(parents=True)
        forge(exports / "step-00000002.json")
        reply = await http.get(f"/v1/runs/{run}/exports/step-00000002", timeout=20)
        assert reply.status_code == 404


@pytest.mark.parametrize("name", ["../../../secret", "a/../../../../secret", "folder/secret"])
async def test_a_forged_list_of_an_export_shows_no_other_file(
    settings: ControlSettings, redis: Redis, spec: RunSpec, tmp_path: Path, name: str
) -> None:
    del redis
    (tmp_path / "runs").mkdir()
    (tmp_path / "secret").write_text(_SECRET)
    (settings.runs_dir / "secret").write_text(_SECRET)
    async with running(create_app(settings)) as http:
        http.headers.update(bearer("admin"))
        run = await stopped(http, spec)
        exports = settings.runs_dir / run / "exports"
        (exports / "step-00000002" / "a").mkdir(parents=True)
        (exports / "step-00000002" / "folder").symlink_to(tmp_path)
        (exports / "step-00000002.json").write_text(_list_of(name))
        reply = await http.get(f"/v1/runs/{run}/exports/step-00000002/file", params={"path": name})
        assert reply.status_code == 404, reply.text
        assert _SECRET not in reply.text


async def test_a_link_in_place_of_the_exports_is_not_followed(
    settings: ControlSettings, redis: Redis, spec: RunSpec, tmp_path: Path
) -> None:
    del redis
    async with running(create_app(settings)) as http:
        http.headers.update(bearer("admin"))
        run = await stopped(http, spec)
        fill(tmp_path, "elsewhere")
        folder = settings.runs_dir / run
        (folder / "final").mkdir(parents=True)
        (folder / "exports").symlink_to(tmp_path / "elsewhere")
        (await http.post(f"/v1/runs/{run}/exports", json={"checkpoint": "final"})).raise_for_status()
        made = await eventually(http, f"/v1/runs/{run}/exports/final", lambda found: found["state"] != "preparing")
        assert made["state"] == "failed" and "link" in made["error"]
    assert there(tmp_path, "elsewhere") == ALL


async def test_a_checkpoint_of_an_impossible_step_is_none(
    settings: ControlSettings, redis: Redis, spec: RunSpec
) -> None:
    del redis
    async with running(create_app(settings)) as http:
        http.headers.update(bearer("admin"))
        run = await stopped(http, spec)
        for step in ("00000002", "9" * 30):
            (settings.runs_dir / run / "checkpoints" / f"step-{step}").mkdir(parents=True)
        found = (await http.get(f"/v1/runs/{run}/checkpoints")).raise_for_status().json()["checkpoints"]
        assert [one["step"] for one in found] == [2]
