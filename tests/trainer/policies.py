"""Policies on tiny models, and groups to train them on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from mor_core.datafiles import Prompt
from mor_core.runs import RunSpec
from mor_trainer.model import loading
from mor_trainer.model.batching import TrainingGroup
from mor_trainer.model.policy import Policy
from mor_trainer.model.rows import Row
from mor_trainer.ranks import Ranks

from tests.trainer.kit import make_spec

KINDS = ("idefics3", "smolvlm", "qwen2_5_vl", "llava")
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
"""What there is to train on here."""


def policy_of(
    model: Path, prompts: Path, dtype: torch.dtype = torch.float64, *, device: str = "cpu", **changes: Any
) -> tuple[Policy, RunSpec]:
    spec = make_spec(model, prompts, **changes)
    torch.manual_seed(0)
    loaded, processor = loading.load(str(model), dtype)
    return Policy(loaded, processor, spec, ranks=Ranks(torch.device(device))), spec


def groups_of(policy: Policy, prompts: list[Prompt], size: int = 4, seed: int = 0) -> list[TrainingGroup]:
    """Groups with random responses of one to nine tokens and engine log-probabilities near the policy's."""
    dice = random.Random(seed)
    groups = []
    for prompt in prompts:
        prepared = policy.prepare(prompt.messages, prompt.images)
        responses = tuple(tuple(dice.randrange(20, 300) for _ in range(dice.randint(1, 9))) for _ in range(size))
        with torch.no_grad():
            flat = policy.logprobs([Row(prepared, responses)])[0].tolist() if policy.shares_prompts else None
            flat = flat or [x for r in responses for x in policy.logprobs([Row(prepared, (r,))])[0].tolist()]
        engine = iter(value + dice.gauss(0, 0.3) for value in flat)
        logprobs = tuple(tuple(next(engine) for _ in response) for response in responses)
        groups.append(TrainingGroup(prepared, responses, logprobs, tuple(dice.gauss(0, 1) for _ in responses)))
    return groups
