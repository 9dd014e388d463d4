"""Engine and trainer that compute other log-probabilities from the same weights: refused at first, an alert later."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mor_core.datafiles import Prompt
from mor_trainer.algorithm.engine_difference import EngineDifference
from mor_trainer.model.micro_batches import TrainingGroup
from mor_trainer.update.engine_check import EngineDisagrees
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import Updater
from torch import Tensor

from tests.trainer.kit import Processes
from tests.trainer.policies import groups_of, policy_of
from tests.trainer.stages import Stages, until
from tests.trainer.watching import alerts, create, finish, points, snapshot


def omit_logit_scale(stages: Stages, when: Callable[[], bool] = lambda: True) -> None:
    """Make the engine forget a scale of the logits, as one does with Aya and Command-A."""
    stages.sampler.model.lm_head.register_forward_hook(
        lambda module, arguments, logits: logits * (3.0 if when() else 1.0)
    )


def failed(processes: Processes, run: str) -> str:
    until(lambda: snapshot(processes, run)["state"] == "failed", 200, "the run failed")
    return str(snapshot(processes, run)["error"])


def test_an_engine_that_disagrees_fails_the_run_before_its_first_update(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    omit_logit_scale(stages)
    run = create(processes, model=tiny, prompts=prompts, steps=2)
    with processes.working():
        error = failed(processes, run)
    assert "engine and trainer disagree by " in error
    assert "max_engine_difference=0.1" in error
    assert "MOR_DTYPE" in error
    assert "model family" in error
    assert points(processes, run) == []
    assert snapshot(processes, run)["step"] is None
    assert not any((processes.runs_dir / run).glob("checkpoints/*")), "nothing was trained"


def test_an_engine_with_other_frozen_parts_is_refused(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    """Frozen parts never travel, so no swap can tell that the engine holds others."""
    processes.serve()
    with torch.no_grad():
        for parameter in stages.sampler.model.model.connector.parameters():
            parameter.normal_(std=1.0)
    run = create(processes, model=tiny, prompts=prompts, steps=2, max_staleness=1, keep_weights=4)
    with processes.working():
        assert "engine and trainer disagree" in failed(processes, run)
    assert points(processes, run) == []


def test_an_engine_that_disagrees_later_raises_one_alert(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    omit_logit_scale(stages, when=lambda: stages.sampler.version >= 2)
    run = create(processes, model=tiny, prompts=prompts, steps=5)
    with processes.working():
        finish(processes, run)
    (alert,) = [found for found in alerts(processes, run) if found["name"] == "engine_disagrees"]
    assert "max_engine_difference=0.1" in alert["reason"]
    differences = [point["engine_difference"] for point in points(processes, run)]
    assert differences[:2] == pytest.approx([0.0, 0.0], abs=1e-4)
    assert min(differences[2:]) > 0.1


def test_an_engine_in_bfloat16_is_not_refused(processes: Processes, stages: Stages, tiny: Path, prompts: Path) -> None:
    processes.serve()
    stages.sampler.model.to(torch.bfloat16)
    run = create(processes, model=tiny, prompts=prompts, steps=2)
    with processes.working():
        finish(processes, run)
    differences = [point["engine_difference"] for point in points(processes, run)]
    assert 1e-4 < max(differences) < 0.02


@pytest.mark.slow
def test_ranks_refuse_an_engine_together_and_go_on_with_the_next_run(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    omit_logit_scale(stages)
    launcher = processes.work_together(restarts=0)
    run = create(processes, model=tiny, prompts=prompts, steps=2)
    assert "engine and trainer disagree" in failed(processes, run)
    stages.sampler.version = -1  # it knows one run only
    following = create(processes, model=tiny, prompts=prompts, steps=2, max_engine_difference=None)
    finish(processes, following)
    assert launcher.poll() is None


def test_without_a_bound_nothing_is_refused(processes: Processes, stages: Stages, tiny: Path, prompts: Path) -> None:
    processes.serve()
    omit_logit_scale(stages)
    run = create(processes, model=tiny, prompts=prompts, steps=2, max_engine_difference=None)
    with processes.working():
        finish(processes, run)
    assert not [found for found in alerts(processes, run) if found["name"] == "engine_disagrees"]
    assert min(point["engine_difference"] for point in points(processes, run)) > 0.1


# --- which tokens are compared --------------------------------------------------------------------------------------


def on_policy(groups: list[TrainingGroup]) -> list[TrainingGroup]:
    return [replace(group, on_policy=True) for group in groups]


@pytest.mark.parametrize("importance", ["truncate", "none"])
def test_a_refused_update_changes_nothing(tiny: Path, prompts: Path, rows_of: list[Prompt], importance: str) -> None:
    """Also with several updates in a step; log-probabilities of ``groups_of`` differ by 0.24 nats in the mean."""
    changes = {"algorithm": {"importance": {"kind": importance}}, "optimiser": {"updates_per_step": 2}}
    policy, spec = policy_of(tiny, prompts, **changes)
    groups = on_policy(groups_of(policy, rows_of[:4]))
    before = {name: parameter.detach().clone() for name, parameter in policy.trainable.items()}
    updater = Updater(policy, spec)
    with pytest.raises(EngineDisagrees, match=r"disagree by 0\.2\d* nats a token"):
        updater.step(groups, 1, StepTimer())
    assert all(parameter.equal(before[name]) for name, parameter in policy.trainable.items())


def test_only_the_first_update_of_a_step_is_compared(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    """The second update's own pass is under weights that the first has changed, and is no evidence on the engine."""
    policy, spec = policy_of(tiny, prompts, optimiser={"updates_per_step": 2}, max_engine_difference=1e-3)
    first, second = groups_of(policy, rows_of[:2])
    report = Updater(policy, spec).step([first, *on_policy([second])], 1, StepTimer())
    assert report.engine_difference is None


def test_groups_of_older_weights_are_not_compared(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    """The check waits for the first groups that can tell."""
    policy, spec = policy_of(tiny, prompts)
    groups = groups_of(policy, rows_of[:4])
    updater = Updater(policy, spec)
    assert updater.step(groups, 1, StepTimer()).engine_difference is None
    with pytest.raises(EngineDisagrees):
        updater.step([*groups[:3], *on_policy(groups[3:])], 2, StepTimer())


def test_what_a_nucleus_explains_is_no_difference() -> None:
    policy = torch.tensor([-2.0, -2.0, -2.0, -2.0])

    def mean(engine: Tensor, top_p: float) -> float | None:
        return EngineDifference.of(policy, engine, top_p).mean

    assert mean(policy - math.log(0.8), 0.8) == pytest.approx(0.0, abs=1e-6)
    assert mean(policy - math.log(0.8), 1.0) == pytest.approx(-math.log(0.8))
    assert mean(policy - 1.0, 0.8) == pytest.approx(1.0), "a nucleus makes no token less likely"
    assert mean(policy + 1.0, 0.8) == pytest.approx(1.0 + math.log(0.8))
    assert EngineDifference().mean is None
