"""Prompts whose groups always fail: a few cost themselves alone, too many end the run with their ids."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mor_core.prompt_index import open_prompts
from mor_core.wire import RolloutRecord
from mor_trainer.groups import recovery

from tests.trainer.kit import Processes, write_prompts
from tests.trainer.stages import Stages, until
from tests.trainer.watching import alerts, applied_once, create, finish, points, snapshot


def of_rows(*rows: int) -> Callable[[RolloutRecord], bool]:
    """Return a filter on the groups of these rows of the prompts file."""
    texts = {f"How many circles? {row}" for row in rows}
    return lambda record: record.prompt.messages[-1].text in texts


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses before a group that failed is issued again."""
    monkeypatch.setattr(recovery, "_FAULT_FIRST_S", 0.05)


@pytest.mark.usefixtures("short_pauses")
def test_a_run_goes_on_without_a_bad_prompt(processes: Processes, stages: Stages, tiny: Path, prompts: Path) -> None:
    processes.serve()
    stages.fail = of_rows(3)
    run = create(processes, model=tiny, prompts=prompts, steps=4, evaluation_every=4, evaluation_prompts=str(prompts))
    with processes.working():
        finish(processes, run)
    applied_once(points(processes, run))
    reasons = [alert["reason"] for alert in alerts(processes, run) if alert["name"] == "group_dropped"]
    assert "prompt 'p3': the sampler broke down" in reasons
    assert "evaluation prompt 'p3': the sampler broke down" in reasons
    assert points(processes, run)[-1]["groups_dropped"] >= 1


@pytest.mark.usefixtures("short_pauses")
def test_a_run_ends_where_more_prompts_are_bad_than_it_allows(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    stages.fail = of_rows(3, 7)
    run = create(processes, model=tiny, prompts=prompts, steps=30)
    with processes.working():
        until(lambda: snapshot(processes, run)["state"] == "failed", 200, "the run failed")
    error = snapshot(processes, run)["error"]
    assert "the groups of 2 of 12 prompts were dropped, more than max_bad_prompts=0.05 allows: 'p3', 'p7'" in error
    assert "the sampler broke down" in error
    assert "Correct or remove these rows" in error


def change_a_picture(folder: Path) -> None:
    shutil.copy(folder / "images" / "prompts.jsonl-0.png", folder / "images" / "prompts.jsonl-3.png")


def test_a_picture_that_changed_after_it_was_indexed_leaves_its_row_out(
    processes: Processes, stages: Stages, tiny: Path, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path, 12)
    open_prompts(prompts, index_dir=tmp_path / "runs" / "_prompt_index")
    change_a_picture(tmp_path)
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=2)
    with processes.working():
        finish(processes, run)
    (alert,) = [alert for alert in alerts(processes, run) if alert["name"] == "prompts_left_out"]
    assert "1 of 12 prompts are left out" in alert["reason"]
    assert "prompts.jsonl:4 'p3'" in alert["reason"]
    assert "is not what was indexed" in alert["reason"]


def test_a_picture_that_changes_during_a_run_costs_its_groups_alone(
    processes: Processes, stages: Stages, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_READ_AGAIN_S", 0.5)
    prompts = write_prompts(tmp_path, 12)
    indexes = tmp_path / "runs" / "_prompt_index"
    processes.environment["MOR_GROUP_ATTEMPTS"] = "2"
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=9, evaluation_every=9, evaluation_prompts=str(prompts))
    with processes.working():
        with stages.halting_after(1):
            until(lambda: (snapshot(processes, run)["step"] or 0) >= 1, 200, "a step")
            change_a_picture(tmp_path)
        finish(processes, run)
    applied_once(points(processes, run))
    reasons = {alert["reason"] for alert in alerts(processes, run) if alert["name"] == "group_dropped"}
    problem = f"{prompts}:4: images: images/prompts.jsonl-3.png is not what was indexed; put the former picture back"
    assert {reason.partition(", or")[0] for reason in reasons} == {
        f"prompt 'p3': {problem}",
        f"evaluation prompt 'p3': {problem}",
    }
    assert len([folder for folder in indexes.iterdir() if folder.is_dir()]) == 1
