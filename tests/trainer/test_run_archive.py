"""Archived runs leave the lists and come back; pruned runs keep what was asked; the storage page shows both."""

from __future__ import annotations

import httpx
import pytest
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.run_files import CHECKPOINTS, checkpoints
from redis.asyncio import Redis

from tests.trainer.control import create
from tests.trainer.kit import bearer, running
from tests.trainer.test_retention import KEPT, fill, there

pytestmark = pytest.mark.anyio


async def stopped(http: httpx.AsyncClient, spec: RunSpec) -> str:
    run = await create(http, spec)
    (await http.post(f"/v1/runs/{run}/stop")).raise_for_status()
    return run


async def listed(http: httpx.AsyncClient, query: str = "") -> list[str]:
    return [run["id"] for run in (await http.get(f"/v1/runs{query}")).raise_for_status().json()]


async def test_an_archived_run_leaves_the_lists_and_comes_back(
    http: httpx.AsyncClient, spec: RunSpec, settings: ControlSettings
) -> None:
    run, other = await stopped(http, spec), await stopped(http, spec)
    fill(settings.runs_dir, run)
    before = await http.get("/v1/runs")
    assert (await http.post(f"/v1/runs/{run}/archive")).json()["archived"]
    changed = await http.get("/v1/runs", headers={"If-None-Match": before.headers["ETag"]})
    assert [one["id"] for one in changed.json()] == [other], "a poller sees the change"
    assert await listed(http, "?archived=true") == [run]
    assert (await http.get(f"/v1/runs/{run}")).json()["archived"]
    assert (await http.get(f"/v1/runs/{run}/metrics")).status_code == 200
    assert not (await http.post(f"/v1/runs/{run}/unarchive")).json()["archived"]
    assert {*await listed(http)} == {run, other}
    await http.post(f"/v1/runs/{run}/archive")
    assert (await http.post(f"/v1/runs/{run}/resume")).status_code == 202
    assert {*await listed(http)} == {run, other}, "a resumed run is not hidden"
    assert (await http.post("/v1/runs/unknown/unarchive")).status_code == 404


async def test_a_pruned_run_keeps_its_final_model_or_its_newest_checkpoint(
    http: httpx.AsyncClient, spec: RunSpec, settings: ControlSettings
) -> None:
    run = await stopped(http, spec)
    fill(settings.runs_dir, run)
    for step in (2, 4, 6):
        (settings.runs_dir / run / CHECKPOINTS / f"step-{step:08d}").mkdir()
        (settings.runs_dir / run / CHECKPOINTS / f"step-{step:08d}" / "shard").write_bytes(bytes(100))
    asked = (await http.post(f"/v1/runs/{run}/prune", json={"keep_checkpoints": 1, "dry_run": True})).json()
    freed = (await http.post(f"/v1/runs/{run}/prune", json={"keep_checkpoints": 1})).json()
    assert (asked["bytes"], asked["files"]) == (freed["bytes"], freed["files"]) == (2200, 4)
    assert [path.name for path in checkpoints(settings.runs_dir / run)] == ["step-00000006"]
    storage = (await http.get("/v1/storage")).json()["runs"][0]
    assert (storage["weights"], storage["final"], storage["state"]) == (0, 1000, "stopped")
    assert storage["expires_at"] > storage["finished_at"]
    assert (await http.post(f"/v1/runs/{run}/resume")).status_code == 202, "it has a checkpoint to continue from"
    (await http.post(f"/v1/runs/{run}/stop")).raise_for_status()
    (await http.post(f"/v1/runs/{run}/prune")).raise_for_status()
    assert there(settings.runs_dir, run) == KEPT
    assert "mor run prune" in (await http.post(f"/v1/runs/{run}/resume")).json()["detail"]
    assert (await http.get(f"/v1/runs/{run}/checkpoints")).json()["checkpoints"] == []
    assert (await http.get("/v1/storage")).json()["runs"][0]["expires_at"] is None


async def test_what_a_killed_sweep_left_is_swept_by_the_next(
    settings: ControlSettings, redis: Redis, spec: RunSpec
) -> None:
    del redis
    app = create_app(settings.model_copy(update={"ended_runs_kept": 0}))
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        run = await stopped(http, spec)
        fill(settings.runs_dir, run)
        for name in ("checkpoints", "weights", "record", "exports"):
            (settings.runs_dir / run / name).rename(settings.runs_dir / run / f".{name}.gone")
        await app.state.retention.sweep()
        assert there(settings.runs_dir, run) == KEPT
