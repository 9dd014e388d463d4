"""Responses that ``max_tokens`` cuts: masked, or penalised before it is reached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mor_core.algorithms import OverlongMask, OverlongPenalty
from mor_core.datafiles import Prompt
from mor_trainer.algorithm.overlong import is_masked, shape_rewards
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import Updater
from pydantic import ValidationError

from tests.trainer.kit import Processes, make_spec
from tests.trainer.policies import groups_of, policy_of
from tests.trainer.stages import Stages
from tests.trainer.watching import create, finish, points


def test_the_penalty_grows_over_the_buffer_and_ends_at_its_weight() -> None:
    config = OverlongPenalty(buffer=4, weight=2.0)
    assert shape_rewards([1.0] * 6, [1, 6, 7, 8, 9, 10], 10, config) == pytest.approx((1.0, 1.0, 0.5, 0.0, -0.5, -1.0))
    assert shape_rewards([1.0, 2.0], [10, 10], 10, None) == (1.0, 2.0)
    assert shape_rewards([1.0, 2.0], [10, 10], 10, OverlongMask()) == (1.0, 2.0)


def test_only_responses_that_were_cut_are_masked_and_only_when_asked() -> None:
    assert is_masked("length", OverlongMask())
    assert not is_masked("stop", OverlongMask())
    assert not is_masked("length", OverlongPenalty(buffer=1))
    assert not is_masked("length", None)


def test_a_buffer_that_leaves_no_response_free_is_refused(tiny: Path, prompts: Path) -> None:
    with pytest.raises(ValidationError, match="choose a smaller buffer"):
        make_spec(tiny, prompts, algorithm={"overlong": {"kind": "penalty", "buffer": 6}})


def test_a_masked_response_has_no_part_in_the_gradient_but_in_the_baseline(
    tiny: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    """Each response counts 1/N in the mean over the N that are trained on; advantages are those of the whole group."""
    policy, spec = policy_of(tiny, prompts, algorithm={"kl": {"beta": 0.0}})
    (group,) = groups_of(policy, rows_of[:1])
    masked = replace(group, responses=((), *group.responses[1:]), engine_logprobs=((), *group.engine_logprobs[1:]))
    report = Updater(policy, spec).step([masked], 1, StepTimer())
    whole = policy_of(tiny, prompts, algorithm={"kl": {"beta": 0.0}})[0]
    unmasked = Updater(whole, spec).step([group], 1, StepTimer())
    assert report.advantages == unmasked.advantages
    assert report.sums.tokens == unmasked.sums.tokens - len(group.responses[0])
    assert report.grad_norm > 0


def test_a_run_whose_responses_are_all_cut_ends_without_a_change(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    stages.tamper = lambda record: record.model_copy(update={"finish_reasons": ("length",) * len(record.responses)})
    run = create(processes, model=tiny, prompts=prompts, steps=2, algorithm={"overlong": {"kind": "mask"}})
    with processes.working():
        finish(processes, run)
    history = points(processes, run)
    assert [point["truncation_ratio"] for point in history] == [1.0, 1.0]
    assert [point["response_tokens"] for point in history] == [0, 0]
    assert [point["grad_norm"] for point in history] == [0.0, 0.0]
    assert all(point["response_length_mean"] > 0 for point in history), "what was sampled is reported whole"


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo"])
def test_masking_equals_training_on_the_other_responses_alone(
    tiny: Path, prompts: Path, rows_of: list[Prompt], kind: str
) -> None:
    algorithm = {"kl": {"beta": 0.05}, "loss": {"kind": kind}, "advantage": {"kind": "mean_only"}}
    ends = []
    for alone in (False, True):
        policy, spec = policy_of(tiny, prompts, algorithm=algorithm)
        (group,) = groups_of(policy, rows_of[:1])
        rewards = (0.5, *group.rewards[1:-1], 0.5 * 3 - sum(group.rewards[1:-1]))  # the masked one is the mean
        responses, engine = group.responses[1:], group.engine_logprobs[1:]
        if alone:
            taken = replace(group, responses=responses, engine_logprobs=engine, rewards=rewards[1:])
        else:
            taken = replace(group, responses=((), *responses), engine_logprobs=((), *engine), rewards=rewards)
        Updater(policy, spec).step([taken], 1, StepTimer())
        ends.append({name: p.detach().clone() for name, p in policy.trainable.items()})
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-9) for name in ends[0])
