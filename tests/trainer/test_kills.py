"""A worker that is killed anywhere loses no step of the history, and leaves none there twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.fatal_points import FatalPoint, work_until_death
from tests.trainer.kit import Processes
from tests.trainer.stages import Stages, until
from tests.trainer.watching import applied_once, create, finish, points, snapshot

SAVE = "update.learner.Learner.save"
REPORT = "reporting.reporter.StepReporter.step"
POINTS = [FatalPoint(SAVE, "after"), FatalPoint(REPORT, "after")]
MORE_POINTS = [
    FatalPoint("update.learner.Learner.update", "after"),
    FatalPoint("weights.background_publication.BackgroundPublication.begin", "after", 2),
    FatalPoint(SAVE, "before"),
    FatalPoint(REPORT, "before", 2),
    FatalPoint("weights.publisher.Publisher.publish", "after", 2),
    FatalPoint("event_log.EventLog.untold", "after"),
    FatalPoint("event_log.EventLog.carry", "after"),
    FatalPoint("groups.exchange.GroupExchange.start", "after"),
    FatalPoint(SAVE, "after", 2),
]


def checkpoint_steps(processes: Processes, run: str) -> list[int]:
    with processes.client("viewer") as http:
        found = http.get(f"/v1/runs/{run}/checkpoints").raise_for_status().json()["checkpoints"]
    return [checkpoint["step"] for checkpoint in found]


def die_at(processes: Processes, run: str, fatal: list[FatalPoint]) -> None:
    for point in fatal:
        work_until_death(processes.environment, point, 60)
        until(lambda: snapshot(processes, run)["state"] == "queued", 15, "the lease ended")


def expect_whole_history(processes: Processes, run: str, steps: int, every: int) -> None:
    with processes.working():
        finish(processes, run, 120)
    history = points(processes, run)
    applied_once(history)
    assert len(history) == steps
    assert set(range(every, steps + 1, every)) <= set(checkpoint_steps(processes, run))


def test_no_kill_around_a_checkpoint_loses_a_step(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    fields: dict[str, Any] = {"steps": 6, "checkpoint_every": 2, "keep_checkpoints": 10}
    run = create(processes, model=tiny, prompts=prompts, **fields)
    die_at(processes, run, POINTS)
    expect_whole_history(processes, run, 6, 2)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("every", [1, 3])
def test_no_kill_anywhere_loses_a_step(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path, every: int
) -> None:
    processes.serve()
    fields: dict[str, Any] = {"steps": 12, "checkpoint_every": every, "keep_checkpoints": 12, "max_staleness": 1}
    run = create(processes, model=tiny, prompts=prompts, **fields)
    die_at(processes, run, [*POINTS, *MORE_POINTS])
    expect_whole_history(processes, run, 12, every)
