"""Proof of value: on a tiny model the reward rises, with each loss and with adapters, unless rewards are shuffled."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from mor_core.datafiles import read_prompts
from mor_core.wire import PromptRecord, Sampling, WeightsRef
from mor_trainer.model import loading
from mor_trainer.model.policy import Policy
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import Updater

from tests.tiny_models import build_tiny_vlm
from tests.trainer.kit import make_spec
from tests.trainer.policies import training_group
from tests.trainer.stages import Sampler


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with larger weights than elsewhere, so that an adapter can make a token likely through a frozen head."""
    return build_tiny_vlm(tmp_path_factory.mktemp("peaked"), scale=5.0)


def mean_rewards(tiny: Path, prompts: Path, steps: int, **changes: Any) -> list[float]:
    """On-policy training in one process: the policy itself is sampled, the reward is the share of even token ids."""
    spec = make_spec(
        tiny, prompts, **{"steps": steps, "group_size": 8, "optimiser": {"lr": 3e-3, "warmup_steps": 0}, **changes}
    )
    torch.manual_seed(0)
    model, processor = loading.load(spec.model)
    policy = Policy(model, processor, spec)
    updater = Updater(policy, spec)
    sampler = Sampler.of(policy.model, processor)
    rows = read_prompts(prompts)
    means = []
    for step in range(1, steps + 1):
        groups = []
        for index in range(4):
            prompt = rows[(4 * step + index) % len(rows)]
            record = PromptRecord(
                run="r", group_id=f"{step}-{index}", prompt_id=prompt.id, messages=prompt.messages,
                sampling=Sampling(group_size=8, max_tokens=6), weights=WeightsRef(version=0),
            )  # fmt: skip
            block, _, _ = sampler.sample(record, prompt.images)
            rewards = tuple(4.0 * sum(t % 2 == 0 for t in ids) / len(ids) for ids in block.response_token_ids)
            prepared = policy.prepare(prompt.messages, prompt.images)
            groups.append(training_group(prepared, block.response_token_ids, block.response_logprobs, rewards))
        means.append(statistics.fmean(reward for group in groups for reward in group.rewards))
        updater.step(groups, step, StepTimer())
    return means


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "algorithm": {"loss": {"kind": "dapo"}, "kl": {"estimator": "k2"}},
            "optimiser": {"lr": 3e-3, "updates_per_step": 2},
        },
        {"algorithm": {"loss": {"kind": "dr_grpo"}, "advantage": {"kind": "mean_only"}, "kl": {"beta": 0.0}}},
        {
            "algorithm": {"loss": {"kind": "gspo"}, "importance": {"kind": "mask", "level": "sequence"}},
            "optimiser": {"lr": 3e-3, "updates_per_step": 2},
        },
        {
            "algorithm": {"loss": {"kind": "cispo"}, "advantage": {"kind": "batch_std"}, "kl": {"estimator": "k1"}},
            "optimiser": {"lr": 3e-3, "updates_per_step": 2},
        },
        {"tuning": {"kind": "lora", "rank": 8}, "optimiser": {"lr": 1e-2, "warmup_steps": 0}},
    ],
    ids=["grpo", "dapo", "dr_grpo", "gspo", "cispo", "lora"],
)
def test_the_reward_rises(tiny: Path, prompts: Path, changes: dict[str, Any]) -> None:
    means = mean_rewards(tiny, prompts, 12, **changes)
    assert statistics.fmean(means[-3:]) > statistics.fmean(means[:3]) + 0.7, means


def test_shuffled_rewards_do_not_raise_the_reward(tiny: Path, prompts: Path) -> None:
    means = mean_rewards(tiny, prompts, 12, control_rewards="shuffled")
    assert abs(statistics.fmean(means[-3:]) - statistics.fmean(means[:3])) < 0.6, means
