"""One training step: scored groups in, changed parameters and an ``UpdateReport`` out."""

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
from mor_trainer.algorithm.engine_difference import EngineDifference
from mor_trainer.algorithm.loss import LossSums, micro_batch_loss
from mor_trainer.algorithm.losses import policy_loss_of
from mor_trainer.algorithm.losses.loss_tokens import LossTokens
from mor_trainer.algorithm.schedule import learning_rate
from mor_trainer.model import sharding
from mor_trainer.model.micro_batches import MicroBatchItem, TrainingGroup, longest_response, micro_batches
from mor_trainer.model.packed_sequences import PackedSequence
from mor_trainer.model.policy import Policy
from mor_trainer.ranks import Ranks
from mor_trainer.update.budget import TokenBudget
from mor_trainer.update.engine_check import EngineCheck
from mor_trainer.update.step_timer import StepTimer


class Diverged(MorError):
    """Loss or gradient not finite, update after update."""


@dataclass(frozen=True)
class UpdateReport:
    """Results of a step; ``None`` where there was nothing to measure."""

    advantages: list[list[float]]
    """By group and response, as they were trained on."""
    sums: LossSums
    loss: float
    """Sum over the step's updates."""
    entropy: float | None
    """Mean entropy of the sampling distribution, nats a token."""
    kl: float | None
    """Mean k3 estimate of KL(policy ‖ reference), nats a token."""
    engine_difference: float | None
    """Mean |log π - log μ| of on-policy groups, nats a token, in the step's first update: π is still their sampler."""
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

    Each rank computes its part of the groups; losses, gradients and metrics are sums over all ranks.
    """

    def __init__(self, policy: Policy, spec: RunSpec, ranks: Ranks | None = None) -> None:
        self._policy = policy
        self._spec = spec
        self._ranks = ranks or Ranks(policy.device)
        self.budget = TokenBudget(spec.micro_batch_tokens, alone=self._ranks.size == 1, fixed=spec.deterministic)
        self._engine_check = EngineCheck(spec.max_engine_difference)
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

    def step(self, groups: Sequence[TrainingGroup], step: int, timer: StepTimer) -> UpdateReport:
        """Train on ``groups``, divided over the step's updates in their order. All ranks pass the same groups.

        Raises:
            Diverged: ``optimiser.max_skipped_updates`` updates in a row had no finite loss or gradient.
            EngineDisagrees: the first groups show that the engine does not compute what the trainer computes.
            OutOfMemory: not even a micro-batch of one response fits the memory.
            RetryWithSmallerBatch: memory ran out on this of several ranks.
        """
        spec = self._spec
        lr = learning_rate(spec.optimiser, step, spec.steps)
        for options in self.optimiser.param_groups:
            options["lr"] = lr
        rewards = torch.tensor([group.rewards for group in groups], dtype=torch.float64)
        if spec.control_rewards == "shuffled":
            rewards = _shuffled(rewards, f"{spec.seed}/{step}")
        values = advantages(rewards, spec.algorithm.advantage)
        with timer.measure("processing"):
            parts = [
                self._part(groups[first : first + size], values[first : first + size], begins_step=first == 0)
                for size in (len(groups) // spec.optimiser.updates_per_step,)
                for first in range(0, len(groups), size)
            ]
        with timer.measure("forward_backward"):
            for part in parts[1:]:  # the first update's own forward pass is under the policy as the step began
                self._keep_old_logprobs(part)
        totals = [self._update(part, timer) for part in parts]
        sums = sum((one.sums for one in totals[1:]), totals[0].sums)
        return UpdateReport(
            advantages=values.tolist(),
            sums=sums,
            loss=sum(one.loss for one in totals),
            entropy=sum(one.entropy for one in totals) / sums.tokens if sums.tokens else None,
            kl=sums.kl / sums.tokens if sums.tokens and self._policy.has_reference else None,
            engine_difference=totals[0].difference.mean,
            grad_norm=max(one.grad_norm for one in totals),
            lr=lr,
            skipped=sum(not one.applied for one in totals),
            processed_tokens=sum(one.processed_tokens for one in totals),
            micro_batch_tokens=self.budget.tokens,
            divided_groups=sum(one.divided for one in totals),
        )

    def _part(
        self, groups: Sequence[TrainingGroup], values: Float[Tensor, "groups size"], *, begins_step: bool
    ) -> _RankPart:
        """Select this rank's part of an update; token weights are those of the whole update."""
        filled = [
            (number, member)
            for number, group in enumerate(groups)
            for member, response in enumerate(group.responses)
            if response
        ]
        lengths = torch.tensor([len(groups[number].responses[member]) for number, member in filled])
        loss = policy_loss_of(self._spec.algorithm.loss)
        weights = loss.token_weights(lengths, self._spec.sampling.max_tokens).tolist()
        prompts = [group.prepared for group in groups if group.prepared is not None]
        shortest = min(prompts, key=lambda prompt: len(prompt.processed.token_ids))
        first_token = next((groups[number].responses[member][0] for number, member in filled), None)
        filler = None if first_token is None else PackedSequence(shortest, ((first_token,),))
        on_policy = frozenset(number for number, group in enumerate(groups) if begins_step and group.on_policy)
        return _RankPart(groups, values, dict(zip(filled, weights, strict=True)), on_policy, filler)

    def _keep_old_logprobs(self, part: _RankPart) -> None:
        """Keep the log-probabilities of a later update's tokens before the first update changes the policy."""
        if self._spec.algorithm.importance.kind == "none":
            return

        def keep(batch: Sequence[MicroBatchItem]) -> None:
            logprobs = self._policy.logprobs(batch)[0]
            lengths = [len(response) for item in batch for response in item.responses]
            part.old.update(zip(_members(batch), torch.split(logprobs, lengths), strict=True))

        with torch.no_grad():
            self._run(part, lambda batches: None, keep, lambda filler: self._policy.logprobs([filler]))

    def _update(self, part: _RankPart, timer: StepTimer) -> _Totals:
        totals = _Totals()

        def begin(batches: Sequence[Sequence[MicroBatchItem]]) -> None:
            nonlocal totals
            totals = _Totals()
            self.optimiser.zero_grad(set_to_none=True)
            parts = Counter(item.group for batch in batches for item in batch)
            totals.divided = sum(count > 1 for count in parts.values()) if self._policy.shares_prompts else 0

        with timer.measure("forward_backward"):
            self._run(part, begin, lambda batch: self._accumulate(batch, part, totals), self._compute_filler)
            by_rank = self._ranks.gather(totals)
            totals = sum(by_rank[1:], by_rank[0])
        self._engine_check.check(totals.difference)
        with timer.measure("optimiser"):
            norm = torch.nn.utils.clip_grad_norm_(self._policy.trainable.values(), self._spec.optimiser.grad_clip)
            totals.grad_norm = sharding.full_tensor(norm).item()
            totals.applied = math.isfinite(totals.grad_norm) and math.isfinite(totals.loss)
            if totals.applied:
                self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        self._skipped_in_a_row = 0 if totals.applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row == self._spec.optimiser.max_skipped_updates:
            raise Diverged(
                f"{self._skipped_in_a_row} updates in a row had a loss or gradient that is not finite "
                f"(loss {totals.loss:g}, gradient norm {totals.grad_norm:g}); none of them was applied. Lower "
                "optimiser.lr and resume from the last checkpoint"
            )
        return totals

    def _run(
        self,
        part: _RankPart,
        begin: Callable[[Sequence[Sequence[MicroBatchItem]]], None],
        work: Callable[[Sequence[MicroBatchItem]], None],
        compute_filler: Callable[[PackedSequence], object],
    ) -> None:
        """Run ``work`` on this rank's micro-batches, then ``compute_filler`` as often as another rank has more."""
        missing = 0

        def plan(tokens: int) -> Sequence[Sequence[MicroBatchItem]]:
            nonlocal missing
            if tokens < self._spec.micro_batch_tokens:  # halved: a response cannot be divided
                tokens = max(tokens, longest_response(part.groups))
            batches = micro_batches(part.groups, self._policy, tokens)
            begin(batches)
            missing = max(self._ranks.gather(len(batches))) - len(batches)
            return batches

        self.budget.run(plan, work)
        for _ in range(missing):
            assert part.filler is not None, "another rank has a response"
            compute_filler(part.filler)

    def _compute_filler(self, filler: PackedSequence) -> None:
        """Run forward and backward passes without effect, in which the other ranks gather parameters and gradients."""
        if self._policy.has_reference:
            self._policy.reference_logprobs([filler])
        (0.0 * self._policy.logprobs([filler])[0].sum()).backward()  # type: ignore[no-untyped-call]

    def _accumulate(self, batch: Sequence[MicroBatchItem], part: _RankPart, totals: _Totals) -> None:
        """Add a micro-batch's gradient to the parameters and its sums to ``totals``."""
        members = _members(batch)
        reference = self._policy.reference_logprobs(batch) if self._policy.has_reference else None
        logprobs, entropy = self._policy.logprobs(batch)
        counts = torch.tensor([len(response) for item in batch for response in item.responses])
        engine = torch.tensor(
            [value for number, member in members for value in part.groups[number].engine_logprobs[member]]
        ).to(logprobs)
        kept = [part.old[key] for key in members if key in part.old]
        old = torch.cat(kept) if kept else logprobs.detach()

        def by_token(values: list[float]) -> Float[Tensor, " n"]:
            return torch.tensor(values, dtype=torch.float64).repeat_interleave(counts).to(logprobs)

        tokens = LossTokens(
            policy=logprobs,
            old=engine if self._spec.algorithm.importance.kind == "none" else old,
            engine=engine,
            reference=reference,
            advantage=by_token([part.advantages[key].item() for key in members]),
            weight=by_token([part.weights[key] for key in members]),
            response=torch.arange(len(members)).repeat_interleave(counts).to(logprobs.device),
        )
        loss, sums = micro_batch_loss(tokens, self._spec.algorithm)
        loss.backward()  # type: ignore[no-untyped-call]
        totals.loss += loss.item()
        totals.sums = totals.sums + sums
        sampler = torch.tensor([number in part.on_policy for number, _ in members])
        chosen = sampler.repeat_interleave(counts).to(logprobs.device)
        totals.difference += EngineDifference.of(logprobs[chosen], engine[chosen], self._spec.sampling.top_p)
        totals.entropy += entropy.sum().item()
        totals.processed_tokens += (2 if kept else 1) * self._policy.padded_tokens(batch)


@dataclass(frozen=True)
class _RankPart:
    """This rank's part of an update."""

    groups: Sequence[TrainingGroup]
    """All groups of the update; this rank computes those with a prepared prompt."""
    advantages: Float[Tensor, "groups size"]
    weights: dict[tuple[int, int], float]
    """Weight of one token of each response that has tokens, by numbers of group and response."""
    on_policy: frozenset[int]
    """Numbers of the groups that the policy of the update's own forward pass sampled."""
    filler: PackedSequence | None
    """Short sequence to compute while other ranks have more to do; ``None`` where the update has no response at all."""
    old: dict[tuple[int, int], Float[Tensor, " n"]] = field(default_factory=dict)
    """Log-probabilities of responses as the step began, where the update's own forward pass comes later."""


@dataclass
class _Totals:
    """Running totals of one update."""

    loss: float = 0.0
    sums: LossSums = field(default_factory=LossSums)
    difference: EngineDifference = field(default_factory=EngineDifference)
    entropy: float = 0.0
    processed_tokens: int = 0
    divided: int = 0
    grad_norm: float = 0.0
    applied: bool = False

    def __add__(self, other: _Totals) -> _Totals:
        """Add the totals of two ranks, before the gradient is known."""
        return _Totals(
            self.loss + other.loss,
            self.sums + other.sums,
            self.difference + other.difference,
            self.entropy + other.entropy,
            self.processed_tokens + other.processed_tokens,
            self.divided + other.divided,
        )


def _members(batch: Sequence[MicroBatchItem]) -> list[tuple[int, int]]:
    """List the numbers of group and response of all responses of a micro-batch."""
    return [(item.group, member) for item in batch for member in item.members]


def _shuffled(rewards: Float[Tensor, "groups size"], seed: str) -> Float[Tensor, "groups size"]:
    """Permute the rewards of a step over all its responses: same values, no relation to the responses."""
    order = list(range(rewards.numel()))
    random.Random(seed).shuffle(order)
    return rewards.flatten()[order].reshape(rewards.shape)
