"""Full disks: run control and a run wait for room, lose nothing, and go on by themselves.

The kernel refuses the writes of a worker whose largest file is limited, and SQLite those of a database whose pages are.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from tests.conftest import Valkey
from tests.trainer.control import Worker, claim, create, eventually
from tests.trainer.kit import TOKENS, Processes, bearer, running
from tests.trainer.stages import Stages, share_of_even_tokens, until
from tests.trainer.watching import alerts, applied_once, finish, points, snapshot
from tests.trainer.watching import create as create_run

_LARGEST = 100_000
"""Bytes: more than a log or a step's groups have, less than a version of the tiny model."""


def limit_files(process: subprocess.Popen[bytes], largest: int | None) -> None:
    """Limit the files that a process writes; ``None`` ends the limit."""
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard if largest is None else largest, hard))


def half_written(runs_dir: Path) -> list[Path]:
    return [*runs_dir.rglob(".*.part"), *runs_dir.rglob(".*.old")]


@pytest.mark.anyio
async def test_run_control_loses_nothing_while_its_disk_is_full(
    settings: ControlSettings, redis: Redis, spec: RunSpec
) -> None:
    app = create_app(settings)
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        attempt = (await claim(http))["attempt"]
        database = app.state.database._connection.dbapi_connection
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count={pages}")
        worker = Worker(redis, run, attempt)
        await worker.report("state", 0, {"name": "started", "from_step": 0})
        for number in range(1, 6):
            await worker.step(number, reward=0.1)
            await worker.report("state", number, {"name": "x" * 20_000})
        async with asyncio.timeout(20):
            while (reason := (await http.get("/readyz")).json()["missing"].get("history")) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert "database or disk is full" in reason
        assert "make room on the disk of MOR_RUNS_DIR" in reason

        beat = {"attempt": attempt, "state": "running", "disk_full": "weights version 3 found no room"}
        for state in ("running", "paused", "running"):  # none of these can be stored, and the lease is renewed
            reply = await http.post(
                f"/v1/runs/{run}/heartbeat", json=beat | {"state": state}, headers=bearer("service")
            )
            assert reply.status_code == 200, reply.text
        assert (await http.get(f"/v1/runs/{run}")).json()["disk_full"] == "weights version 3 found no room"
        end = {"attempt": attempt, "state": "finished", "final": "/" + "x" * 20_000}
        reply = await http.post(f"/v1/runs/{run}/heartbeat", json=end, headers=bearer("service"))
        assert reply.status_code == 503, "an end that is not stored is not acknowledged"
        assert reply.headers["Retry-After"]
        assert "make room" in reply.json()["detail"]

        database.execute("PRAGMA max_page_count=1000000")
        await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 5)
        assert (await http.get("/readyz")).status_code == 200
        beat = {"attempt": attempt, "state": "running"}
        await http.post(f"/v1/runs/{run}/heartbeat", json=beat, headers=bearer("service"))
        assert (await http.get(f"/v1/runs/{run}")).json()["disk_full"] is None
        found = (await http.get("/v1/alerts")).json()
        assert [(alert["name"], alert["reason"]) for alert in found] == [
            ("disk_full", "weights version 3 found no room")
        ]
        assert found[0]["acknowledged_by"] == "mor", "the alert ends with the wait"
        history = (await http.get(f"/v1/runs/{run}/metrics")).json()["points"]
        assert [point["step"] for point in history] == [1, 2, 3, 4, 5]


@pytest.mark.anyio
async def test_a_claim_that_could_not_be_stored_is_made_again(
    settings: ControlSettings, redis: Redis, spec: RunSpec
) -> None:
    app = create_app(settings)
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        app.state.database.write("INSERT INTO attempts (run, attempt) VALUES (:run, 1)", run=run)
        assert (await claim(http))["run"] == run


def test_a_run_waits_for_room_and_goes_on(processes: Processes, stages: Stages, tiny: Path, prompts: Path) -> None:
    processes.environment["MOR_RUN_LEASE_S"] = "20"  # this test is about the disk, on a machine that may be busy
    processes.serve()
    stages.beta = "shadow"
    processes.environment["MOR_DISK_RESERVE_BYTES"] = "0"
    run = create_run(processes, model=tiny, prompts=prompts, steps=5, deterministic=True)
    worker = processes.work()

    def step() -> int:
        return snapshot(processes, run)["step"] or 0

    def waits() -> str:
        return snapshot(processes, run)["disk_full"] or ""

    until(lambda: step() >= 1, 200, "step 1")
    limit_files(worker, _LARGEST)
    until(lambda: "weights version" in waits() or "checkpoint" in waits(), 200, "the run waits")
    assert "File too large" in waits()
    assert "make room" in waits()
    assert half_written(processes.runs_dir) == []
    seen = step()
    with processes.client() as http:
        http.post(f"/v1/runs/{run}/pause").raise_for_status()
        until(lambda: snapshot(processes, run)["state"] == "paused", 200, "the waiting run pauses")
        http.post(f"/v1/runs/{run}/resume").raise_for_status()
    limit_files(worker, None)
    until(lambda: step() > seen, 200, "the run goes on")
    until(lambda: not waits(), 20, "a heartbeat tells that the run waits no longer")

    limit_files(worker, 1000)
    until(lambda: bool(waits()), 200, "the run waits again")
    worker.send_signal(signal.SIGTERM)
    worker.wait(timeout=60)
    end = snapshot(processes, run)
    assert (end["state"], end["disk_full"]) == ("queued", None), "the run is handed back"
    assert half_written(processes.runs_dir) == []
    processes.work()
    finish(processes, run, 200)
    applied_once(points(processes, run))
    told = [(alert["name"], alert.get("over", False)) for alert in alerts(processes, run)]
    assert told == [("disk_full", False), ("disk_full", True)] * 2


def test_a_run_waits_for_a_queue_server_without_memory(
    tmp_path: Path, tokens_file: Path, valkey: Valkey, tiny: Path, prompts: Path, checks_dir: Path
) -> None:
    processes = Processes(tmp_path / "runs", tokens_file, valkey.url, tmp_path)
    processes.environment["MOR_CHECKS_DIR"] = str(checks_dir)
    stages = Stages(valkey.url, tiny, share_of_even_tokens, TOKENS["service"], lambda: processes.address)
    try:
        processes.serve()
        with stages, SyncRedis(port=valkey.port) as queue:
            run = create_run(processes, model=tiny, prompts=prompts, steps=4)
            queue.config_set("maxmemory", "1")
            processes.environment["MOR_STALL_TIMEOUT_S"] = "1"
            with processes.working() as worker:
                until(lambda: "used memory" in (snapshot(processes, run)["disk_full"] or ""), 200, "the run waits")
                time.sleep(1.5)  # longer than it waits for groups otherwise
                assert snapshot(processes, run)["state"] == "running"
                worker.end()
                queue.config_set("maxmemory", "0")
            del processes.environment["MOR_STALL_TIMEOUT_S"]
            with processes.working():
                finish(processes, run, 200)
        applied_once(points(processes, run))
        told = [(alert["name"], alert.get("over", False)) for alert in alerts(processes, run)]
        assert told == [("disk_full", False), ("disk_full", True)]
    finally:
        processes.end()
