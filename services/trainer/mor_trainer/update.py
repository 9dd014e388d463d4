"""One training step's mathematics: scored groups in, changed parameters and metrics out."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from mor_core.runs import RunSpec
from torch import Tensor

from mor_trainer.advantage import advantages
from mor_trainer.loss import LossSums, policy_loss
from mor_trainer.losses import objective_of
from mor_trainer.losses.tokens import Tokens
from mor_trainer.packing import micro_batches
from mor_trainer.policy import Policy
from mor_trainer.rows import PreparedPrompt, Row
from mor_trainer.schedule import learning_rate
from mor_trainer.shares import TimeShares


@dataclass(frozen=True)
class TrainingGroup:
    """A group as the update takes it."""

    prompt: PreparedPrompt
    responses: tuple[tuple[int, ...], ...]
    engine_logprobs: tuple[tuple[float, ...], ...]
    rewards: tuple[float, ...]


@dataclass(frozen=True)
class UpdateReport:
    """What a step did; ``None`` where there was nothing to measure."""

    advantages: list[list[float]]
    """By group and response, as they were trained on."""
    sums: LossSums
    entropy: float | None
    """Mean entropy of the sampling distribution, nats a token."""
    kl: float | None
    """Mean k3 estimate of KL(policy ‖ reference), nats a token."""
    grad_norm: float
    """Largest norm of the step's updates, before clipping."""
    lr: float
    skipped: int
    """Updates left out because loss or gradient was not finite."""
    processed_tokens: int
    """Tokens that went through the policy, prompts and padding included."""


class Updater:
    """AdamW on the policy's trained parameters; decay on matrices only."""

    def __init__(self, policy: Policy, spec: RunSpec) -> None:
        self._policy = policy
        self._spec = spec
        config = spec.optimiser
        matrices = [p for p in policy.trainable.values() if p.dim() >= 2]
        others = [p for p in policy.trainable.values() if p.dim() < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr,
            betas=config.betas,
        )

    def step(self, groups: Sequence[TrainingGroup], step: int, shares: TimeShares) -> UpdateReport:
        """Train on ``groups``, which are divided over the step's updates in their order."""
        spec = self._spec
        lr = learning_rate(spec.optimiser, step, spec.steps)
        for options in self.optimiser.param_groups:
            options["lr"] = lr
        rewards = torch.tensor([group.rewards for group in groups], dtype=torch.float64)
        if spec.control_rewards == "shuffled":
            rewards = _shuffled(rewards, f"{spec.seed}/{step}")
        values = advantages(rewards, spec.algorithm.advantage)
        with shares.measure("processing"):
            plans = [
                self._plan(groups[first : first + size], values[first : first + size])
                for size in (len(groups) // spec.optimiser.updates_per_step,)
                for first in range(0, len(groups), size)
            ]
        with shares.measure("forward_backward"):
            for plan in plans[1:]:  # the first update finds the policy as the step began with it
                self._remember(plan)
        parts = [self._update(plan, shares) for plan in plans]
        sums = sum((part.sums for part in parts[1:]), parts[0].sums)
        return UpdateReport(
            advantages=values.tolist(),
            sums=sums,
            entropy=sum(part.entropy for part in parts) / sums.tokens if sums.tokens else None,
            kl=sums.kl / sums.tokens if sums.tokens and self._policy.has_reference else None,
            grad_norm=max(part.grad_norm for part in parts),
            lr=lr,
            skipped=sum(not part.applied for part in parts),
            processed_tokens=sum(part.processed_tokens for part in parts),
        )

    def _plan(self, groups: Sequence[TrainingGroup], values: Float[Tensor, "groups size"]) -> _Plan:
        units = self._units(groups, values)
        return _Plan([[units[index] for index in batch] for batch in self._batches([unit.row for unit in units])])

    @torch.no_grad()
    def _remember(self, plan: _Plan) -> None:
        """Keep the log-probabilities of a later update's tokens before the first update changes the policy."""
        if self._spec.algorithm.importance.kind != "none":
            plan.old = [self._policy.logprobs([unit.row for unit in units])[0] for units in plan.batches]

    def _update(self, plan: _Plan, shares: TimeShares) -> _Part:
        part = _Part()
        for index, units in enumerate(plan.batches):
            with shares.measure("forward_backward"):
                self._accumulate(units, plan.old[index] if plan.old else None, part)
        with shares.measure("optimiser"):
            norm = torch.nn.utils.clip_grad_norm_(self._policy.trainable.values(), self._spec.optimiser.grad_clip)
            part.grad_norm = norm.item()
            part.applied = math.isfinite(part.grad_norm)
            if part.applied:
                self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        return part

    def _units(self, groups: Sequence[TrainingGroup], values: Float[Tensor, "groups size"]) -> list[_Unit]:
        """A row for each group, or for each part of it that fits the token budget; responses of no token are left out.

        Where the model cannot share a prompt, a row for each response.
        """
        responses = [
            _Response(index, ids, group.engine_logprobs[place], values[index, place].item())
            for index, group in enumerate(groups)
            for place, ids in enumerate(group.responses)
            if ids
        ]
        lengths = torch.tensor([len(response.ids) for response in responses])
        weights = objective_of(self._spec.algorithm.loss).shares(lengths, self._spec.sampling.max_tokens).tolist()
        budget = self._spec.micro_batch_tokens if self._policy.shares_prompts else 0
        units: list[_Unit] = []
        for response, weight in zip(responses, weights, strict=True):
            prompt = groups[response.group].prompt
            last = units[-1] if units else None
            if last is not None and last.group == response.group and len(last.row) + len(response.ids) <= budget:
                units[-1] = last.with_response(response, weight)
            else:
                units.append(_Unit(response.group, Row(prompt, (response.ids,)), (response,), (weight,)))
        return units

    def _batches(self, rows: Sequence[Row]) -> list[list[int]]:
        """Micro-batches of row indices; rows whose images cannot be stacked share one with their own group only."""
        stacks: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            stacks.setdefault(0 if self._policy.mixes_prompts(row) else id(row.prompt), []).append(index)
        return [
            [indices[i] for i in batch]
            for indices in stacks.values()
            for batch in micro_batches([len(rows[i]) for i in indices], self._spec.micro_batch_tokens)
        ]

    def _accumulate(self, units: Sequence[_Unit], old: Tensor | None, part: _Part) -> None:
        """Add a micro-batch's gradient. ``old``: log-probabilities as the step began; this forward pass's if not given.

        A unit holds whole responses, so a micro-batch does.
        """
        rows = [unit.row for unit in units]
        passes = 1 if old is None else 2
        reference = self._policy.reference_logprobs(rows) if self._policy.has_reference else None
        logprobs, entropy = self._policy.logprobs(rows)
        responses = [response for unit in units for response in unit.responses]
        counts = torch.tensor([len(response.ids) for response in responses])
        engine = torch.tensor([value for response in responses for value in response.engine]).to(logprobs)
        if self._spec.algorithm.importance.kind == "none":
            old = engine

        def by_token(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).repeat_interleave(counts).to(logprobs)

        tokens = Tokens(
            policy=logprobs,
            old=logprobs.detach() if old is None else old,
            engine=engine,
            reference=reference,
            advantage=by_token([response.advantage for response in responses]),
            weight=by_token([weight for unit in units for weight in unit.weights]),
            response=torch.arange(len(responses)).repeat_interleave(counts).to(logprobs.device),
        )
        loss, sums = policy_loss(tokens, self._spec.algorithm)
        loss.backward()  # type: ignore[no-untyped-call]
        part.sums = part.sums + sums
        part.entropy += entropy.sum().item()
        part.processed_tokens += passes * len(rows) * max(len(row) for row in rows)


@dataclass(frozen=True)
class _Response:
    group: int
    ids: tuple[int, ...]
    engine: tuple[float, ...]
    advantage: float


@dataclass(frozen=True)
class _Unit:
    """A row with what the loss needs for its responses."""

    group: int
    row: Row
    responses: tuple[_Response, ...]
    weights: tuple[float, ...]

    def with_response(self, response: _Response, weight: float) -> _Unit:
        row = Row(self.row.prompt, (*self.row.responses, response.ids))
        return _Unit(self.group, row, (*self.responses, response), (*self.weights, weight))


@dataclass
class _Plan:
    """One update, prepared."""

    batches: list[list[_Unit]]
    old: list[Tensor] | None = None
    """Log-probabilities as the step began, by micro-batch."""


class _Part:
    """Running totals of one update."""

    def __init__(self) -> None:
        self.sums = LossSums()
        self.entropy = 0.0
        self.grad_norm = 0.0
        self.applied = False
        self.processed_tokens = 0


def _shuffled(rewards: Float[Tensor, "groups size"], seed: str) -> Float[Tensor, "groups size"]:
    """The rewards of a step permuted over all its responses: same values, no relation to what they were given for."""
    order = list(range(rewards.numel()))
    random.Random(seed).shuffle(order)
    return rewards.flatten()[order].reshape(rewards.shape)
