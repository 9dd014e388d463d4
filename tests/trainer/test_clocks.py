"""Clocks that differ or jump: leases last as long as they should, alerts are sent, and runs are finished."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mor_core.runs import ClaimRequest, Heartbeat, RunSpec, RunState
from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.database import Database
from mor_trainer.control.dead_letter_store import DeadLetterStore
from mor_trainer.control.run_store import RunStore
from mor_trainer.control.worker_registry import WorkerRegistry

from tests.shifted_clock import Shift
from tests.trainer.kit import Processes
from tests.trainer.stages import Stages, until
from tests.trainer.watching import applied_once, create, finish, points, snapshot

HOUR_S = 3600.0
LEASE_S = 0.2
SPEC = RunSpec(name="r", model="/m", prompts="/p")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.of_file(tmp_path / "history.sqlite3")
    yield database
    database.close()


def run_store(database: Database) -> RunStore:
    return RunStore(database, AlertStore(database, webhook=True), DeadLetterStore(database, 10), lease_s=LEASE_S)


@pytest.mark.parametrize("jump", [HOUR_S, -HOUR_S])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_jump_neither_ends_a_live_lease_nor_extends_a_dead_one(
    database: Database, shift: Shift, jump: float, restarted: bool
) -> None:
    runs = run_store(database)
    run = runs.create(SPEC)
    claim = runs.claim("worker")
    assert claim is not None
    shift(jump)
    if restarted:
        runs = run_store(database)
    assert runs.requeue_lost() == []
    assert runs.beat(run, Heartbeat(attempt=claim.attempt, state=RunState.running)).desired == "run"
    time.sleep(0.6 * LEASE_S)
    assert runs.requeue_lost() == []
    time.sleep(0.6 * LEASE_S)
    assert runs.requeue_lost() == [run], "the worker is dead for longer than a lease"
    again = runs.claim("another")
    assert again is not None and again.attempt == claim.attempt + 1
    assert runs.requeue_lost() == []


def test_runs_are_claimed_in_their_order_whatever_the_clock_showed(database: Database, shift: Shift) -> None:
    runs = run_store(database)
    order = []
    for ahead in (0, -HOUR_S, HOUR_S):
        shift(ahead)
        order.append(runs.create(SPEC))
    claims = [runs.claim("worker") for _ in order]
    assert [claim.run for claim in claims if claim is not None] == order


@pytest.mark.parametrize("jump", [HOUR_S, -HOUR_S])
def test_a_run_that_ended_lingers_as_long_as_it_should(database: Database, shift: Shift, jump: float) -> None:
    runs = run_store(database)
    run = runs.create(SPEC)
    runs.request(run, "stop")
    shift(jump)
    assert runs.active(linger_s=60) == [run]
    assert run_store(database).active(linger_s=60) in ([run], [])
    assert runs.active(linger_s=0) == []


@pytest.mark.parametrize("ahead", [HOUR_S, -HOUR_S])
def test_an_alert_is_sent_at_once_whatever_the_workers_clock_says(database: Database, ahead: float) -> None:
    alerts = AlertStore(database, webhook=True)
    with database.transaction() as sql:
        alerts.raise_in(sql, "r", "kl_high", "a test", at=time.time() + ahead)
    assert alerts.due() is not None


def test_an_alert_is_sent_though_the_clock_is_set_back(database: Database, shift: Shift) -> None:
    alerts = AlertStore(database, webhook=True)
    with database.transaction() as sql:
        alerts.raise_in(sql, "r", "kl_high", "a test")
    found = alerts.due()
    assert found is not None
    alerts.mark_failed(found[0].id, time.time() + 60)
    assert alerts.due() is None
    shift(-HOUR_S)
    assert alerts.due() is not None


@pytest.mark.parametrize("jump", [HOUR_S, -HOUR_S])
def test_a_worker_stays_known_through_a_jump(shift: Shift, jump: float) -> None:
    workers = WorkerRegistry(60)
    workers.claimed(ClaimRequest(worker="w", version="1", device="cpu"), None)
    shift(jump)
    assert [(worker.name, worker.state) for worker in workers.list()] == [("w", "waiting")]


_SITE = """
import os, sys, time

real, folder = time.time, os.environ["TEST_CLOCKS"]

def shifted():
    try:
        with open(os.path.join(folder, sys.argv[1])) as file:
            return real() + float(file.read())
    except (OSError, IndexError, ValueError, AttributeError):
        return real()

time.time = shifted
"""
"""Module that Python imports at its start; it reads how far the process's clock is ahead at every look at it."""


@pytest.mark.slow
def test_a_run_is_finished_though_clocks_differ_and_jump(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    clocks, site = tmp_path / "clocks", tmp_path / "site"
    clocks.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(_SITE)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    processes.environment |= {"TEST_CLOCKS": str(clocks), "PYTHONPATH": path}
    (clocks / "serve").write_text("-600")
    (clocks / "work").write_text("600")
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=8)
    processes.work()
    with stages.halting_after(2):
        until(lambda: (snapshot(processes, run)["step"] or 0) >= 2, 200, "step 2")
        (clocks / "serve").write_text("3000")
    with stages.halting_after(4):
        until(lambda: (snapshot(processes, run)["step"] or 0) >= 4, 200, "step 4")
        (clocks / "work").write_text("-3000")
    finish(processes, run)
    applied_once(points(processes, run))
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in ("serve", "work")}
    assert "lost its run" not in logs["serve"]
    assert all("differs from that of the queue server" in text for text in logs.values())
