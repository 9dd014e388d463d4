"""One training step's mathematics: scored groups in, changed parameters and metrics out."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from mor_core.errors import MorError
from mor_core.runs import RunSpec
from torch import Tensor

from mor_trainer.algorithm.advantage import advantages
from mor_trainer.algorithm.loss import LossSums, policy_loss
from mor_trainer.algorithm.losses import objective_of
from mor_trainer.algorithm.losses.tokens import Tokens
from mor_trainer.algorithm.schedule import learning_rate
from mor_trainer.model import sharding
from mor_trainer.model.batching import Response, TrainingGroup, Unit, micro_batches, responses_of
from mor_trainer.model.policy import Policy
from mor_trainer.model.rows import Row
from mor_trainer.ranks import Ranks
from mor_trainer.update.budget import TokenBudget
from mor_trainer.update.step_timer import TimeShares


class Diverged(MorError):
    """Loss or gradient is not finite, update after update."""


@dataclass(frozen=True)
class UpdateReport:
    """What a step did; ``None`` where there was nothing to measure."""

    advantages: list[list[float]]
    """By group and response, as they were trained on."""
    sums: LossSums
    loss: float
    """Sum over the step's updates."""
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
    micro_batch_tokens: int
    """The token budget; less than the run's where memory ran out."""
    divided_groups: int
    """Groups over the token budget, whose prompt went through the policy once for each of its parts."""


class Updater:
    """AdamW on the policy's trained parameters; decay on matrices only.

    Each rank computes its part of the groups; losses, gradients and metrics are sums over all of them.
    """

    def __init__(self, policy: Policy, spec: RunSpec, ranks: Ranks | None = None) -> None:
        self._policy = policy
        self._spec = spec
        self._ranks = ranks or Ranks(policy.device)
        self.budget = TokenBudget(spec.micro_batch_tokens, alone=self._ranks.size == 1, fixed=spec.deterministic)
        self._skipped_in_a_row = 0
        config = spec.optimiser
        matrices = [p for p in policy.trainable.values() if p.dim() >= 2]
        others = [p for p in policy.trainable.values() if p.dim() < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr,
            betas=config.betas,
            fused=True,
        )

    def step(self, groups: Sequence[TrainingGroup], step: int, shares: TimeShares) -> UpdateReport:
        """Train on ``groups``, which are divided over the step's updates in their order. All ranks are given the same.

        Raises:
            Diverged: ``optimiser.max_skipped_updates`` updates in a row had no finite loss or gradient.
            OutOfMemory: not even a micro-batch of one response fits the memory.
            Halved: memory ran out on this of several ranks.
        """
        spec = self._spec
        lr = learning_rate(spec.optimiser, step, spec.steps)
        for options in self.optimiser.param_groups:
            options["lr"] = lr
        rewards = torch.tensor([group.rewards for group in groups], dtype=torch.float64)
        if spec.control_rewards == "shuffled":
            rewards = _shuffled(rewards, f"{spec.seed}/{step}")
        values = advantages(rewards, spec.algorithm.advantage)
        with shares.measure("processing"):
            updates = [
                self._own(groups[first : first + size], values[first : first + size])
                for size in (len(groups) // spec.optimiser.updates_per_step,)
                for first in range(0, len(groups), size)
            ]
        with shares.measure("forward_backward"):
            for own in updates[1:]:  # the first update finds the policy as the step began with it
                self._remember(own)
        parts = [self._update(own, shares) for own in updates]
        sums = sum((part.sums for part in parts[1:]), parts[0].sums)
        return UpdateReport(
            advantages=values.tolist(),
            sums=sums,
            loss=sum(part.loss for part in parts),
            entropy=sum(part.entropy for part in parts) / sums.tokens if sums.tokens else None,
            kl=sums.kl / sums.tokens if sums.tokens and self._policy.has_reference else None,
            grad_norm=max(part.grad_norm for part in parts),
            lr=lr,
            skipped=sum(not part.applied for part in parts),
            processed_tokens=sum(part.processed_tokens for part in parts),
            micro_batch_tokens=self.budget.tokens,
            divided_groups=sum(part.divided for part in parts),
        )

    def _own(self, groups: Sequence[TrainingGroup], values: Float[Tensor, "groups size"]) -> _Own:
        """This rank's part of an update, with shares of the whole of it."""
        lengths = torch.tensor([len(ids) for group in groups for ids in group.responses if ids])
        shares = objective_of(self._spec.algorithm.loss).shares(lengths, self._spec.sampling.max_tokens)
        token = next((ids[0] for group in groups for ids in group.responses if ids), None)
        prompts = [group.prompt for group in groups if group.prompt is not None]
        shortest = min(prompts, key=lambda prompt: len(prompt.encoded.token_ids))
        idle = None if token is None else Row(shortest, ((token,),))
        return _Own(responses_of(groups, values, shares.tolist()), idle)

    def _remember(self, own: _Own) -> None:
        """Keep the log-probabilities of a later update's tokens before the first update changes the policy."""
        if self._spec.algorithm.importance.kind == "none":
            return

        def remember(units: Sequence[Unit]) -> None:
            known = [response for unit in units for response in unit.responses]
            logprobs = self._policy.logprobs([unit.row for unit in units])[0]
            for response, old in zip(known, torch.split(logprobs, [len(one.ids) for one in known]), strict=True):
                response.old = old

        with torch.no_grad():
            self._spend(own, lambda batches: None, remember, lambda row: self._policy.logprobs([row]))

    def _update(self, own: _Own, shares: TimeShares) -> _Part:
        part = _Part()

        def begin(batches: Sequence[Sequence[Unit]]) -> None:
            nonlocal part
            part = _Part()
            self.optimiser.zero_grad(set_to_none=True)
            rows = Counter(unit.responses[0].group for units in batches for unit in units)
            part.divided = sum(count > 1 for count in rows.values()) if self._policy.shares_prompts else 0

        with shares.measure("forward_backward"):
            self._spend(own, begin, lambda units: self._accumulate(units, part), self._idle)
            parts = self._ranks.gather(part)
            part = sum(parts[1:], parts[0])
        with shares.measure("optimiser"):
            norm = torch.nn.utils.clip_grad_norm_(self._policy.trainable.values(), self._spec.optimiser.grad_clip)
            part.grad_norm = sharding.full(norm).item()
            part.applied = math.isfinite(part.grad_norm) and math.isfinite(part.loss)
            if part.applied:
                self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        self._skipped_in_a_row = 0 if part.applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row == self._spec.optimiser.max_skipped_updates:
            raise Diverged(
                f"{self._skipped_in_a_row} updates in a row had a loss or gradient that is not finite "
                f"(loss {part.loss:g}, gradient norm {part.grad_norm:g}); none of them was applied. Lower optimiser.lr "
                "and resume from the last checkpoint"
            )
        return part

    def _spend(
        self,
        own: _Own,
        begin: Callable[[Sequence[Sequence[Unit]]], None],
        work: Callable[[Sequence[Unit]], None],
        idle: Callable[[Row], object],
    ) -> None:
        """``work`` on this rank's micro-batches, and ``idle`` as often as another rank has more of them."""
        most = 0

        def plan(tokens: int) -> Sequence[Sequence[Unit]]:
            nonlocal most
            if tokens < self._spec.micro_batch_tokens:  # halved: a response cannot be divided
                tokens = max([tokens, *(response.length for response in own.responses)])
            batches = micro_batches(own.responses, self._policy, tokens)
            begin(batches)
            most = max(self._ranks.gather(len(batches))) - len(batches)
            return batches

        self.budget.spend(plan, work)
        for _ in range(most):
            assert own.idle is not None, "another rank has a response"
            idle(own.idle)

    def _idle(self, row: Row) -> None:
        """Forward and backward passes with no effect: the other ranks gather parameters and sum gradients meanwhile."""
        if self._policy.has_reference:
            self._policy.reference_logprobs([row])
        (0.0 * self._policy.logprobs([row])[0].sum()).backward()  # type: ignore[no-untyped-call]

    def _accumulate(self, units: Sequence[Unit], part: _Part) -> None:
        """Add a micro-batch's gradient."""
        rows = [unit.row for unit in units]
        responses = [response for unit in units for response in unit.responses]
        reference = self._policy.reference_logprobs(rows) if self._policy.has_reference else None
        logprobs, entropy = self._policy.logprobs(rows)
        counts = torch.tensor([len(response.ids) for response in responses])
        engine = torch.tensor([value for response in responses for value in response.engine]).to(logprobs)
        remembered = [response.old for response in responses if response.old is not None]
        old = torch.cat(remembered) if remembered else logprobs.detach()

        def by_token(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).repeat_interleave(counts).to(logprobs)

        tokens = Tokens(
            policy=logprobs,
            old=engine if self._spec.algorithm.importance.kind == "none" else old,
            engine=engine,
            reference=reference,
            advantage=by_token([response.advantage for response in responses]),
            weight=by_token([response.weight for response in responses]),
            response=torch.arange(len(responses)).repeat_interleave(counts).to(logprobs.device),
        )
        loss, sums = policy_loss(tokens, self._spec.algorithm)
        loss.backward()  # type: ignore[no-untyped-call]
        part.loss += loss.item()
        part.sums = part.sums + sums
        part.entropy += entropy.sum().item()
        part.processed_tokens += (2 if remembered else 1) * self._policy.places(rows)


@dataclass(frozen=True)
class _Own:
    """What this rank computes of an update."""

    responses: Sequence[Response]
    idle: Row | None
    """A short row, for when other ranks have more to do; none where the update has no response at all."""


@dataclass
class _Part:
    """Running totals of one update."""

    loss: float = 0.0
    sums: LossSums = field(default_factory=LossSums)
    entropy: float = 0.0
    processed_tokens: int = 0
    divided: int = 0
    grad_norm: float = 0.0
    applied: bool = False

    def __add__(self, other: _Part) -> _Part:
        """The totals of two ranks, before the gradient is known."""
        return _Part(
            self.loss + other.loss,
            self.sums + other.sums,
            self.entropy + other.entropy,
            self.processed_tokens + other.processed_tokens,
            self.divided + other.divided,
        )


def _shuffled(rewards: Float[Tensor, "groups size"], seed: str) -> Float[Tensor, "groups size"]:
    """The rewards of a step permuted over all its responses: same values, no relation to what they were given for."""
    order = list(range(rewards.numel()))
    random.Random(seed).shuffle(order)
    return rewards.flatten()[order].reshape(rewards.shape)
