"""Files of ended runs are bounded by age, number and bytes; the final model and active runs are never touched."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from mor_core.runs import Heartbeat, RunSpec, RunState
from mor_core.server_clock import ServerClock
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.control import retention
from mor_trainer.run_files import FOLDERS
from redis.asyncio import Redis

from tests.trainer.control import Worker, claim, create, eventually
from tests.trainer.kit import bearer, running

pytestmark = pytest.mark.anyio
_DAY_S = 86400
_BYTES = 1000


def fill(runs_dir: Path, run: str) -> None:
    """Write what a worker leaves: files of each kind, and a part of a file that it was killed at."""
    for name in (*FOLDERS, "final"):
        (runs_dir / run / name / "1").mkdir(parents=True)
        (runs_dir / run / name / "1" / "file").write_bytes(bytes(_BYTES))
    (runs_dir / run / "preflight.json").write_text("{}")
    (runs_dir / run / ".final.0a1b2c3d.part").mkdir()


def there(runs_dir: Path, run: str) -> set[str]:
    return {path.name for path in (runs_dir / run).iterdir()}


KEPT = {"final", "preflight.json", "files-deleted"}
ALL = {*FOLDERS, "final", "preflight.json", ".final.0a1b2c3d.part"}


@pytest.mark.parametrize(
    ("limits", "deleted"),
    [
        ({}, 0),
        ({"ended_run_days": 2.5}, 2),
        ({"ended_runs_kept": 1}, 3),
        ({"ended_runs_bytes": 2 * len(FOLDERS) * _BYTES}, 2),
        ({"ended_runs_share": "8 files"}, 2),
        ({"ended_runs_share": "1 file"}, 3),
        ({"ended_runs_kept": 0}, 4),
    ],
    ids=str,
)
async def test_the_oldest_files_of_ended_runs_go_and_the_final_model_stays(
    settings: ControlSettings, redis: Redis, spec: RunSpec, limits: dict[str, Any], deleted: int
) -> None:
    del redis
    if "ended_runs_share" in limits:
        bytes_left = int(limits["ended_runs_share"].split()[0]) * _BYTES
        settings.runs_dir.mkdir(exist_ok=True)
        limits = {"ended_runs_share": bytes_left / shutil.disk_usage(settings.runs_dir).total}
    settings = settings.model_copy(update=limits)
    app = create_app(settings)
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        active, paused = await create(http, spec), await create(http, spec)
        await http.post(f"/v1/runs/{paused}/pause")
        ended = []
        for age in (1, 2, 3, 4):
            ended.append(run := await create(http, spec))
            (await http.post(f"/v1/runs/{run}/stop")).raise_for_status()
            at = time.time() - age * _DAY_S
            app.state.runs._database.write("UPDATE runs SET finished_at=:at WHERE id=:id", at=at, id=run)
        for run in (active, paused, *ended, "unknown"):
            fill(settings.runs_dir, run)
        await app.state.retention.sweep()
        for run in (active, paused, "unknown", *ended[: 4 - deleted]):
            assert there(settings.runs_dir, run) == ALL
        for run in ended[4 - deleted :]:
            assert there(settings.runs_dir, run) == KEPT
            reply = await http.post(f"/v1/runs/{run}/resume")
            assert reply.status_code == 409
            assert "create a new run" in reply.json()["detail"]
        if not deleted:
            assert (await http.post(f"/v1/runs/{ended[3]}/resume")).status_code == 202


async def test_a_clock_that_jumped_ahead_makes_no_run_old(
    settings: ControlSettings, redis: Redis, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(settings)
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        (await http.post(f"/v1/runs/{run}/stop")).raise_for_status()
        fill(settings.runs_dir, run)
        clock = ServerClock()
        await clock.read(redis)
        monkeypatch.setattr(retention, "SERVER_CLOCK", clock)
        sweep = app.state.retention.sweep
        ahead = time.time() + 400 * _DAY_S
        with monkeypatch.context() as jump:
            jump.setattr(time, "time", lambda: ahead)
            await sweep()
        assert there(settings.runs_dir, run) == ALL
        app.state.runs._database.write(
            "UPDATE runs SET finished_at=:at WHERE id=:id", at=time.time() - 400 * _DAY_S, id=run
        )
        await sweep()
        assert there(settings.runs_dir, run) == KEPT, "it is really old"


async def test_a_run_that_ends_brings_the_next_sweep_forward(
    settings: ControlSettings, redis: Redis, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    del redis
    monkeypatch.setattr(retention, "_LOOK_S", 0.02)
    settings = settings.model_copy(update={"ended_runs_kept": 0})
    app = create_app(settings)
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        fill(settings.runs_dir, run)
        sweeping = asyncio.create_task(app.state.retention.keep_sweeping(first_s=0, pause_s=3600))
        await asyncio.sleep(0.1)
        assert there(settings.runs_dir, run) == ALL
        (await http.post(f"/v1/runs/{run}/stop")).raise_for_status()
        await eventually(http, f"/v1/runs/{run}", lambda _: there(settings.runs_dir, run) == KEPT)
        sweeping.cancel()


async def test_a_link_in_place_of_a_folder_is_not_followed(
    settings: ControlSettings, redis: Redis, spec: RunSpec, tmp_path: Path
) -> None:
    del redis
    settings = settings.model_copy(update={"ended_runs_kept": 0})
    app = create_app(settings)
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        first, second = await create(http, spec), await create(http, spec)
        for run in (first, second):
            (await http.post(f"/v1/runs/{run}/stop")).raise_for_status()
        fill(tmp_path, "elsewhere")
        (settings.runs_dir / first).symlink_to(tmp_path / "elsewhere")
        (settings.runs_dir / second).mkdir()
        (settings.runs_dir / second / "weights").symlink_to(tmp_path / "elsewhere" / "weights")
        await app.state.retention.sweep()
    assert there(tmp_path, "elsewhere") == ALL


async def test_old_history_is_forgotten_and_figures_stay(
    settings: ControlSettings, redis: Redis, spec: RunSpec
) -> None:
    app = create_app(settings)
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        worker = Worker(redis, run, (await claim(http))["attempt"])
        await worker.report("state", 0, {"name": "started", "from_step": 0})
        for step in range(1, 4):
            await worker.step(step, reward=0.5)
        await worker.report("alert", 3, {"name": "tracker_failed", "reason": "mlflow: no"})
        await worker.report("alert", 3, {"name": "non_finite", "reason": "one update"})
        found = await eventually(http, "/v1/alerts", lambda alerts: len(alerts) == 2)
        handled = next(alert["id"] for alert in found if alert["name"] == "tracker_failed")
        await http.post(f"/v1/alerts/{handled}/acknowledge", json={})
        app.state.runs.beat(run, Heartbeat(attempt=1, state=RunState.finished, final="/final"))
        retention = app.state.retention
        await retention.sweep()
        assert len(app.state.history.events(run, 0)) > 5
        old = time.time() - (settings.history_days + 1) * _DAY_S
        app.state.runs._database.write("UPDATE runs SET finished_at=:at WHERE id=:id", at=old, id=run)
        await retention.sweep()
        events = app.state.history.events(run, 0)
        assert [event.data.get("state") for event in events] == ["finished"], "readers still see the end"
        assert app.state.history.pruned(run) == events[0].id - 1
        history = (await http.get(f"/v1/runs/{run}/metrics")).json()["points"]
        assert [point["step"] for point in history] == [1, 2, 3]
        assert [alert["name"] for alert in (await http.get("/v1/alerts")).json()] == ["non_finite"]
        assert app.state.history.forget_ended(time.time()) == 0, "nothing is left to delete"
