"""Published weights that are damaged, deleted or behind the engines: published again, and no group is lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mor_core.errors import Unavailable
from mor_trainer.groups import unusable_versions
from mor_trainer.groups.ledger import Ledger, Receipt
from mor_trainer.groups.unusable_versions import UnusableVersions

from tests.trainer.fatal_points import FatalPoint, work_until_death
from tests.trainer.kit import Processes
from tests.trainer.records import order_of
from tests.trainer.stages import Stages, until
from tests.trainer.test_checkpoints import flip, truncate
from tests.trainer.watching import alerts, applied_once, create, finish, points, snapshot


def test_a_damaged_or_deleted_version_is_published_again(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No report costs a group an attempt, of which each has one."""
    monkeypatch.setattr(unusable_versions, "_PAUSE_S", 0.1)
    processes.serve()
    processes.environment |= {"MOR_GROUP_ATTEMPTS": "1", "MOR_GROUP_TIMEOUT_S": "60"}
    run = create(processes, model=tiny, prompts=prompts, steps=6, evaluation_prompts=str(prompts), evaluation_every=6)
    weights = processes.runs_dir / run / "weights"
    damages: list[Callable[[Path], object]] = [
        lambda folder: flip(folder / "model.safetensors"),
        lambda folder: truncate(folder / "model.safetensors"),
        lambda folder: (folder / "manifest.json").write_bytes(b""),
        shutil.rmtree,
        lambda folder: shutil.rmtree(folder.parent),
    ]

    damaged: set[int] = set()

    def damage(version: int) -> bool:
        if version % 2 and version not in damaged and damages:
            damaged.add(version)
            damages.pop()(weights / str(version))
        return False

    stages.before_pull = damage
    with processes.working():
        finish(processes, run, 120)
    assert not damages
    history = points(processes, run)
    applied_once(history)
    assert history[-1]["groups_dropped"] == 0
    raised = [alert for alert in alerts(processes, run) if alert["name"] == "weights_republished"]
    assert len(raised) == 5
    assert "engine stage: no version 1; the same weights are published again, as version 2" in raised[0]["reason"]
    assert not [alert for alert in alerts(processes, run) if alert["name"] == "group_dropped"]


@pytest.mark.parametrize("ahead", [5000, pytest.param(0, marks=pytest.mark.slow)])
def test_a_run_whose_weights_folder_is_gone_continues_above_the_engines(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path, ahead: int
) -> None:
    """Also where an engine has a version of which neither checkpoint nor history knows."""
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=6, checkpoint_every=20)
    work_until_death(processes.environment, FatalPoint("reporting.reporter.StepReporter.step", "after", 3), 90)
    shutil.rmtree(processes.runs_dir / run / "weights")
    engine = stages.sampler.version = stages.sampler.version + ahead
    with processes.working():
        end = finish(processes, run, 90)
    assert end["weights_version"] > engine
    history = points(processes, run)
    applied_once(history)
    assert min(version for point in history for version in point["sampled_by"]) > engine


def test_an_engine_that_can_use_no_version_ends_the_run_and_is_named(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unusable_versions, "_PAUSE_S", 0.01)
    processes.serve()
    stages.before_pull = lambda version: True
    run = create(processes, model=tiny, prompts=prompts)
    with processes.working():
        until(lambda: snapshot(processes, run)["state"] == "failed", 200, "the run failed")
    end = snapshot(processes, run)
    assert "published again 4 times, and no engine can use them: engine stage: no version 4" in end["error"]
    assert end["weights_version"] == 4


def test_beside_an_engine_that_works_one_that_reports_all_versions_only_costs_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unusable_versions, "_PAUSE_S", 0.05)
    monkeypatch.setattr(unusable_versions, "_AGAIN_S", 0.01)
    issued: list[str] = []
    versions = UnusableVersions(issued.append, time.monotonic)
    versions.published(0)
    begun, version, reports = time.monotonic(), 0, 0
    while time.monotonic() < begun + 1:
        if reports == len(issued):
            versions.report("g", version, "a lie")
            reports += 1
        if versions.due() is not None:
            version += 1
            versions.published(version)
        time.sleep(0.002)
        versions.release()
    assert version <= 6, "pauses of 0, 0.05, 0.1, 0.2, 0.4 s"
    assert len(issued) > 2 * version, "the group goes to the other engine meanwhile"


def test_no_engine_that_works_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unusable_versions, "_PAUSE_S", 0.001)
    begun = time.monotonic()
    versions = UnusableVersions(lambda group: None, lambda: begun)
    deadline = begun + 5

    def fail() -> None:
        while time.monotonic() < deadline:
            versions.report("g", 3, "engine a: damaged")
            versions.due()

    with pytest.raises(Unavailable, match=r"again 4 times, and no engine can use them: engine a: damaged\. Check"):
        fail()


def test_a_version_that_is_published_again_is_the_same_policy() -> None:
    ledger: Ledger[str] = Ledger("r", order_of(12), 1, 3)
    for version in (4, 5):
        ledger.advance_version(version)
    ledger.issue(3, 0.0)
    ledger.renumber_version(8)
    ledger.renumber_version(9)
    assert [ledger.staleness(version) for version in (4, 5, 8, 9, 7)] == [1, 0, 0, 0, None]
    assert ledger.receive(ledger.group_id(0), 5, "a") is Receipt.accepted
    ledger.advance_version(10)
    assert [ledger.staleness(version) for version in (4, 5, 8, 9, 10)] == [None, 1, 1, 1, 0]
    assert ledger.receive(ledger.group_id(1), 8, "b") is Receipt.accepted
    ledger.advance_version(11)
    assert [ledger.staleness(version) for version in (5, 9, 10, 11)] == [None, None, 1, 0]
    assert not ledger.renumbered
