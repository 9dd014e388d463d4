"""Times that processes compare are the queue server's: a run is visible whatever the clocks of the machines show."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest
from mor_core import run_announcements, server_clock
from mor_core.run_announcements import AnnouncedRuns, announce, sweep
from mor_core.server_clock import CLOCK_SKEW, ServerClock
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.core.test_run_announcements import forge, names
from tests.shifted_clock import Shift

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
SHIFTS = [600.0, -600.0, 3600.0, -3600.0]

SYSTEM_CLOCK = {
    "packages/mor_core/mor_core/blobs.py": "age of a file in days, which clocks that differ by minutes hardly change",
    "packages/mor_core/mor_core/prompt_index/index_folders.py": "age of an index in days, likewise",
    "packages/mor_client/mor_client/doctor.py": "compares the services' clocks with this one",
    "packages/mor_core/mor_core/server_clock.py": "compares both clocks",
    "packages/mor_core/mor_core/service.py": "start of the service, shown",
    "packages/mor_core/mor_core/service_info.py": "clock of the service, which `mor doctor` compares",
    "services/reward/mor_reward/answers/answer_guard.py": "time of an answer, shown",
    "services/reward/mor_reward/answers/answer_ledger.py": "of one service alone; budgets of a day",
    "services/reward/mor_reward/answers/protection_report.py": "of one service alone; days of a report",
    "services/reward/mor_reward/answers/query_log.py": "of one service alone; age of a file in days",
    "services/reward/mor_reward/audit/audit_job.py": "day of an audit, shown",
    "services/router/mor_router/clients/http.py": "for a response without a date of its own",
    "services/router/mor_router/clients/scoring.py": "begin of a span, shown",
    "services/router/mor_router/snapshots/snapshot_folder.py": "age of a picture in hours, likewise",
    "services/trainer/mor_trainer/control/alert_store.py": "of run control alone; `due` is safe from jumps",
    "services/trainer/mor_trainer/control/history.py": "of run control alone, shown",
    "services/trainer/mor_trainer/control/retention.py": "of run control alone; age of a run in days",
    "services/trainer/mor_trainer/control/run_archive.py": "of run control alone, shown",
    "services/trainer/mor_trainer/control/run_deletion.py": "of run control alone, an order of deletions",
    "services/trainer/mor_trainer/control/run_rows.py": "of run control alone, shown",
    "services/trainer/mor_trainer/control/run_store.py": "of run control alone, shown; leases are monotonic",
    "services/trainer/mor_trainer/control/webhook.py": "of run control alone; `due` is safe from jumps",
    "services/trainer/mor_trainer/control/worker_registry.py": "of run control alone, shown",
    "services/trainer/mor_trainer/groups/traces.py": "begin of a span, shown",
    "services/trainer/mor_trainer/routes/events.py": "of run control alone, shown",
    "services/trainer/mor_trainer/run/loop.py": "begin and end of a span, shown",
    "services/trainer/mor_trainer/trackers/mlflow.py": "of run control alone, shown",
    "services/trainer/mor_trainer/trackers/tensorboard.py": "of run control alone, shown",
    "services/trainer/mor_trainer/update/step_timer.py": "begin of a span, shown",
    "services/rollout/mor_rollout/chat/completions.py": "`created` of an answer, shown",
}
"""Modules that read the system's clock, and why no other machine's time is compared with it."""


def test_who_reads_the_systems_clock_is_known() -> None:
    found = set()
    for path in (file for folder in ("packages", "services") for file in (ROOT / folder).glob("*/mor_*/**/*.py")):
        reads = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        if reads & {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.datetime.now"}:
            found.add(str(path.relative_to(ROOT)))
    assert found == SYSTEM_CLOCK.keys(), "take a time that others compare from SERVER_CLOCK; name the module if shown"


@pytest.mark.parametrize("ahead", SHIFTS)
@pytest.mark.parametrize("whose", ["the trainer's", "the stage's"])
async def test_a_run_is_visible_though_clocks_differ(redis: Redis, shift: Shift, ahead: float, whose: str) -> None:
    runs = AnnouncedRuns(redis)
    if whose == "the trainer's":
        shift(ahead)
    await announce(redis, "run", "model")
    shift(ahead if whose == "the stage's" else 0)
    assert await names(runs) == ["run"]
    await sweep(redis)
    assert await names(AnnouncedRuns(redis)) == ["run"]


@pytest.mark.parametrize("ahead", SHIFTS)
async def test_a_run_outlasts_a_jump_of_the_queue_servers_clock(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    """The announcement seems old, or from the future, until the trainer renews it."""
    runs = AnnouncedRuns(redis)
    await announce(redis, "run", "model")
    assert await names(runs) == ["run"]
    await forge(redis, "run", age_s=ahead)
    assert await names(runs) == ["run"]
    assert await names(AnnouncedRuns(redis)) == []
    monkeypatch.setattr(run_announcements, "_LEAST_ACTIVE_S", 0.0)
    assert await names(runs) == []
    await announce(redis, "run", "model")
    monkeypatch.undo()
    assert await names(runs) == ["run"]


@pytest.mark.parametrize("ahead", SHIFTS)
async def test_the_servers_time_goes_on_whatever_the_system_shows(redis: Redis, shift: Shift, ahead: float) -> None:
    clock = ServerClock()
    truth = time.time()
    await clock.read(redis)
    shift(ahead)
    assert abs(clock.now() - truth) < 5
    assert abs(await clock.read(redis) - truth) < 5


async def test_a_difference_is_measured_and_named_with_its_cure(redis: Redis, shift: Shift) -> None:
    clock = ServerClock()
    with capture_logs() as logs:
        await clock.read(redis)
        assert logs == []
        assert abs(CLOCK_SKEW._value.get()) < 5
        shift(-612)
        await clock.read(redis)
        await clock.read(redis)
    assert abs(CLOCK_SKEW._value.get() + 612) < 5
    assert len(logs) == 1, "one warning in ten minutes"
    assert "synchronise both with NTP" in logs[0]["event"]
    assert logs[0]["ahead_s"] == pytest.approx(-612, abs=5)
    assert server_clock.TOLERATED_SKEW_S == 30
