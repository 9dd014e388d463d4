"""A row of run control's database that does not fit harms its own run, and no other one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_core.runs import Heartbeat, RunSpec, RunState
from mor_core.streams import Streams
from mor_core.wire import DeadLetter, EventRecord
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.database import Database
from mor_trainer.control.dead_letter_store import DeadLetterStore
from mor_trainer.control.run_store import RunStore
from mor_trainer.event_log import EventLog, event_id
from mor_trainer.groups.bad_groups import bounded
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.trainer.control import eventually
from tests.trainer.kit import bearer, running

pytestmark = pytest.mark.anyio

JUNK = ["abc", b"\x00\xff", "", -1, 2**63 - 1, 1e308, float("inf"), "1e400"]
COLUMNS = ["id", "spec", "state", "desired", "attempt", "worker", "lease_until", "revision", "step", "created_at"]


def changed(runs_dir: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(runs_dir / "history.sqlite3") as database:
        database.execute(statement, values)
    database.close()


@contextlib.contextmanager
def opened(runs_dir: Path) -> Iterator[tuple[RunStore, AlertStore]]:
    """Open the stores of run control."""
    database = Database.of_file(runs_dir / "history.sqlite3")
    alerts = AlertStore(database, webhook=True)
    yield RunStore(database, alerts, DeadLetterStore(database, 10), lease_s=60), alerts
    database.close()


def two_runs(runs_dir: Path, *, held: bool) -> tuple[str, str]:
    """Create a run that is about to be spoilt, held by a worker that is lost, and one behind it."""
    with opened(runs_dir) as (runs, _):
        return _two_runs(runs, runs_dir, held=held)


def _two_runs(runs: RunStore, runs_dir: Path, *, held: bool) -> tuple[str, str]:
    bad = runs.create(RunSpec(name="bad", model="/m", prompts="/p"))
    if held:
        runs.claim("worker")
    return bad, runs.create(RunSpec(name="good", model="/m", prompts="/p"))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("column", COLUMNS)
def test_other_runs_are_claimed(tmp_path: Path, column: str, held: bool) -> None:
    for number, junk in enumerate(JUNK):
        folder = tmp_path / str(number)
        bad, good = two_runs(folder, held=held)
        changed(folder, f"UPDATE runs SET {column}=? WHERE id=?", junk, bad)
        with opened(folder) as (runs, _):
            claimed = [found.run for found in (runs.claim("another") for _ in range(3)) if found is not None]
            assert good in claimed, (column, junk)
            assert runs.snapshot(good).state is RunState.running


@pytest.mark.parametrize(
    ("column", "junk"), [("webhook_attempts", "x"), ("webhook_attempts", 10**6), ("webhook", "x"), ("reason", b"\xff")]
)
def test_other_alerts_are_sent(tmp_path: Path, column: str, junk: Any) -> None:
    two_runs(tmp_path, held=False)
    with opened(tmp_path) as (runs, alerts):
        first, second = runs.ids()
        for run in (first, second):
            runs.warn(run, "tracker_failed", "a test")
        changed(tmp_path, f"UPDATE alerts SET {column}=?, webhook_due=0 WHERE run=?", junk, first)
        due = [found[0].run for found in (alerts.due() for _ in range(3)) if found is not None]
        assert set(due) == {second}


async def test_a_row_that_does_not_fit_ends_neither_ingestion_nor_a_heartbeat(settings: ControlSettings) -> None:
    bad, good = two_runs(settings.runs_dir, held=True)
    changed(settings.runs_dir, "UPDATE runs SET desired='junk' WHERE id=?", bad)
    app = create_app(settings)
    runs, history = app.state.runs, app.state.history
    letter = (
        "INSERT INTO letters (run, step, attempt, at, group_id, reason, replay) VALUES (?, 1, 1, 1.0, ?, 'r', 'asked')"
    )
    async with running(app) as http:
        claim = runs.claim("another")
        assert claim.run == good
        for group in (b"\x00\xff", "g"):
            changed(settings.runs_dir, letter, good, group)
        changed(settings.runs_dir, "UPDATE attempts SET seen='junk'")
        reply = runs.beat(good, Heartbeat(attempt=claim.attempt, state=RunState.running))
        assert (reply.desired, reply.events_seen, list(reply.replay.values())) == ("run", 0, ["g"])
        event = EventRecord(
            run=good, group_id=event_id(1, 1), stamps={"trainer": 1.0}, kind="step", step=1, data={"kl": 0.1}
        )
        assert history.add(event)
        http.headers.update(bearer("admin"))
        await expect_failed(http, bad)
        assert (await http.get(f"/v1/runs/{good}")).json()["state"] == "running"


async def expect_failed(http: httpx.AsyncClient, run: str) -> None:
    found = (await http.get(f"/v1/runs/{run}")).json()
    assert found["state"] == "failed"
    assert "cannot be read" in found["error"]


async def test_a_database_that_is_busy_for_a_while_does_not_end_ingestion(settings: ControlSettings) -> None:
    bad, _ = two_runs(settings.runs_dir, held=True)
    app = create_app(settings.model_copy(update={"run_lease_s": 0.2}))
    backup = sqlite3.connect(settings.runs_dir / "history.sqlite3", isolation_level=None)
    with contextlib.closing(backup), capture_logs() as logs:
        async with running(app) as http:
            http.headers.update(bearer("admin"))
            app.state.database._connection.dbapi_connection.execute("PRAGMA busy_timeout=50")  # in place of 10 s
            backup.execute("BEGIN IMMEDIATE")
            for _ in range(500):
                if any(entry["event"] == "the history cannot be written" for entry in logs):
                    break
                await asyncio.sleep(0.02)
            assert (await http.get(f"/v1/runs/{bad}")).json()["state"] == "running"
            backup.execute("ROLLBACK")
            await eventually(http, f"/v1/runs/{bad}", lambda found: found["state"] == "queued", 10)
    [error] = {entry["error"] for entry in logs if entry["event"] == "the history cannot be written"}
    assert "OperationalError: database is locked" in error


def test_an_event_carries_a_bounded_part_of_a_dead_letter() -> None:
    letter = DeadLetter(
        run="r",
        group_id="g",
        stage="rollout",
        stream="prompts",
        reason="r" * (1 << 20),
        attempts=1,
        record='"' * (1 << 22),
    )
    assert len(json.dumps(bounded(letter))) < 200_000


def an_event(run: str, number: int, **changes: Any) -> EventRecord:
    event = EventRecord(run=run, group_id=event_id(1, number), stamps={"trainer": 1.0}, kind="step", step=number,
                        data={"kl": 0.1})  # fmt: skip
    return event.model_copy(update=changes)


async def test_a_forged_event_swallows_none_that_comes_under_its_number(
    settings: ControlSettings, redis: Redis
) -> None:
    """Far ahead or next in line, well-formed or not; the same event twice counts once."""
    del redis
    app = create_app(settings)
    async with running(app):
        runs, history = app.state.runs, app.state.history
        run = runs.create(RunSpec(name="r", model="/m", prompts="/p", steps=100))
        claim = runs.claim("worker")
        for number in (1, 50, 2**26):
            assert history.add(an_event(run, number, step=1, data={"kl": 9.0}))
        history.refuse(an_event(run, 2, data={"kl": "x"}), "a test")
        for number in (1, 2, 3, 50):
            assert history.add(an_event(run, number))
        assert not history.add(an_event(run, 3))
        points = {point.step: point.kl for point in history.metrics(run, 0, 100).points}
        assert {step: points[step] for step in (2, 3, 50)} == {2: 0.1, 3: 0.1, 50: 0.1}
        reply = runs.beat(run, Heartbeat(attempt=claim.attempt, state=RunState.running))
        assert reply.events_seen == 3


async def test_events_that_were_lost_leave_no_gap_for_ever(settings: ControlSettings, redis: Redis) -> None:
    del redis
    app = create_app(settings)
    async with running(app):
        runs, history = app.state.runs, app.state.history
        run = runs.create(RunSpec(name="r", model="/m", prompts="/p", steps=9000))
        claim, log = runs.claim("worker"), EventLog(run, 1)
        for step in range(1, 5001):
            log.add("step", step, {})
        assert log.lost == 5000 - 4096
        history.add(an_event(run, log.lost + 1))
        reply = runs.beat(run, Heartbeat(attempt=claim.attempt, state=RunState.running, events_lost=log.lost))
        history.add(an_event(run, log.lost + 2))
        assert reply.events_seen == log.lost
        reply = runs.beat(run, Heartbeat(attempt=claim.attempt, state=RunState.running))
        assert reply.events_seen == log.lost + 2


async def test_a_worker_forgets_no_event_that_it_has_not_sent(redis: Redis) -> None:
    log, side = EventLog("r", 1), Streams(redis, "r", 8)
    log.add("step", 1, {})
    sending = asyncio.create_task(log.send(side))
    await asyncio.wait_for(log.drain(), 5)
    sending.cancel()
    log.add("step", 2, {})
    log.seen(10**6)
    assert not log.all_seen, "the history cannot have the second one"
    sending = asyncio.create_task(log.send(side))
    await asyncio.wait_for(log.drain(), 5)
    sending.cancel()
    log.seen(2)
    assert log.all_seen
