"""Publication of versions in parallel with training, within its time limit; sampling that overlaps with training."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mor_core.errors import Unavailable
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.weights.background_publication import BackgroundPublication

from tests.trainer.kit import Processes
from tests.trainer.stages import Stages
from tests.trainer.watching import applied_once, create, finish, points


def test_parameters_change_only_after_their_version_is_written() -> None:
    written, announced = threading.Event(), []

    def publish(version: int, _: Any) -> None:
        assert written.wait(10)
        announced.append(version)

    publication = BackgroundPublication(publish, timeout_s=10)
    publication.begin(1, {})
    publication.check()
    assert announced == []
    threading.Timer(0.05, written.set).start()
    publication.finish()
    assert announced == [1]
    publication.begin(2, {})
    publication.begin(3, {})
    publication.finish()
    assert announced == [1, 2, 3]


def test_a_version_that_is_not_written_in_time_is_an_error() -> None:
    never = threading.Event()

    def hang(*_: Any) -> None:
        never.wait(10)

    publication = BackgroundPublication(hang, timeout_s=0.05)
    publication.begin(7, {})
    with pytest.raises(Unavailable, match=r"weights version 7 was not written in 0.05 s \(MOR_PUBLICATION_TIMEOUT_S\)"):
        publication.finish()
    with pytest.raises(Unavailable):
        publication.check()
    never.set()


def test_a_process_that_is_to_end_leaves_a_version_that_a_hanging_disk_does_not_take() -> None:
    never = threading.Event()
    publication = BackgroundPublication(lambda *_: never.wait(60) and None, timeout_s=300)
    publication.begin(7, {})
    began = time.monotonic()
    publication.close(hurried=True)
    assert time.monotonic() - began < 10
    never.set()
    publication.close()


def test_a_failed_publication_is_raised_in_the_training_thread() -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    publication = BackgroundPublication(full, timeout_s=10)
    publication.begin(1, {})
    deadline = time.monotonic() + 5
    with pytest.raises(OSError, match="No space left"):
        while time.monotonic() < deadline:
            publication.check()
    publication.finish()


def test_phases_of_a_step_add_up_and_an_inner_one_takes_from_the_outer() -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    shares = StepTimer(lambda: now)
    with shares.measure("optimiser"):
        spend(1)
        with shares.measure("publication"):
            spend(4)
        spend(2)
    spend(0.5)
    total, named = shares.finish()
    assert total == 7.5
    assert {name: seconds for name, seconds in named.items() if seconds} == {
        "optimiser": 3, "publication": 4, "unaccounted": 0.5,
    }  # fmt: skip
    with shares.measure("processing"):
        spend(60)
        shares.restart()
        spend(1)
    assert shares.finish()[0] == 1, "a pause is no part of the step"
    assert shares.finish()[1]["processing"] == 1


def test_sampling_and_scoring_go_on_while_the_trainer_computes(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    """Compare the times at which groups left each stage with the updates.

    With staleness, some groups are sampled and scored during an update of others; strictly on-policy, none are.
    """
    processes.serve()
    slow = {"groups_per_step": 8, "group_size": 8, "shared_prompt": "off", "max_staleness": 2, "keep_weights": 4}
    steps, history = 6, []
    for fields in ({}, slow):
        run = create(processes, model=tiny, prompts=prompts, steps=steps, **fields)
        with processes.working():
            finish(processes, run)
        history.append(points(processes, run))
        applied_once(history[-1])
        stages.sampler.version = -1  # of the other run
    on_policy, overlapped = history
    for stage in ("sampled", "scored"):
        assert {point["overlap"][stage] for point in on_policy} == {0.0}
        assert max(point["overlap"][stage] for point in overlapped) > 0, [point["overlap"] for point in overlapped]
    for before, after in itertools.pairwise(on_policy):
        assert before["stages"]["trained"][1] < after["stages"]["sampled"][0] < after["stages"]["scored"][1]
    assert [point["staleness_max"] for point in on_policy] == [0] * steps
    assert 1 <= max(point["staleness_max"] for point in overlapped) <= 2
    for point in overlapped:
        assert point["importance_ratio_mean"] is not None
        assert sum(point["seconds"].values()) == pytest.approx(point["step_seconds"])
    for run_points in history:
        spent = sum(point["step_seconds"] for point in run_points)
        assert sum(point["seconds"]["unaccounted"] for point in run_points) < 0.02 * spent
        gaps = [after["begun_at"] - before["begun_at"] for before, after in itertools.pairwise(run_points)]
        assert sum(gaps) == pytest.approx(sum(point["step_seconds"] for point in run_points[:-1]), rel=0.01)
