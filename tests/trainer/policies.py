"""Policies of tiny models, and groups to train them on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from mor_core.datafiles import Prompt
from mor_core.runs import RunSpec
from mor_trainer.model import loading
from mor_trainer.model.micro_batches import TrainingGroup
from mor_trainer.model.packed_sequences import PackedSequence, PreparedPrompt
from mor_trainer.model.policy import Policy
from mor_trainer.ranks import Ranks

from tests.trainer.kit import make_spec

KINDS = ("idefics3", "smolvlm", "qwen2_5_vl", "llava")
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
"""Devices of this machine."""


def policy_of(
    model: Path, prompts: Path, dtype: torch.dtype = torch.float64, *, device: str = "cpu", **changes: Any
) -> tuple[Policy, RunSpec]:
    spec = make_spec(model, prompts, **changes)
    torch.manual_seed(0)
    loaded, processor = loading.load(str(model), dtype)
    return Policy(loaded, processor, spec, ranks=Ranks(torch.device(device))), spec


def training_group(
    prompt: PreparedPrompt,
    responses: tuple[tuple[int, ...], ...],
    engine_logprobs: tuple[tuple[float, ...], ...],
    rewards: tuple[float, ...],
) -> TrainingGroup:
    """A group whose prompt is prepared; its row in the prompts file does not matter."""
    tokens = len(prompt.processed.token_ids)
    return TrainingGroup(0, tokens, responses, engine_logprobs, rewards, prompt)


def groups_of(policy: Policy, prompts: list[Prompt], size: int = 4, seed: int = 0) -> list[TrainingGroup]:
    """Groups with random responses of one to nine tokens and engine log-probabilities near the policy's."""
    dice = random.Random(seed)
    groups = []
    for prompt in prompts:
        prepared = policy.prepare(prompt.messages, prompt.images)
        responses = tuple(tuple(dice.randrange(20, 300) for _ in range(dice.randint(1, 9))) for _ in range(size))
        with torch.no_grad():
            parts = [responses] if policy.shares_prompts else [(response,) for response in responses]
            flat = [x for part in parts for x in policy.logprobs([PackedSequence(prepared, part)])[0].tolist()]
        engine = iter(value + dice.gauss(0, 0.3) for value in flat)
        logprobs = tuple(tuple(next(engine) for _ in response) for response in responses)
        groups.append(training_group(prepared, responses, logprobs, tuple(dice.gauss(0, 1) for _ in responses)))
    return groups
