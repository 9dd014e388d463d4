"""The responses of an update, divided into micro-batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mor_trainer.model.packing import packed_batches, padded_batches
from mor_trainer.model.policy import Policy
from mor_trainer.model.rows import PreparedPrompt, Row


@dataclass(frozen=True)
class TrainingGroup:
    """A group as the update takes it."""

    prompt: PreparedPrompt | None
    """``None``: another rank computes it; only its rewards and lengths count here."""
    responses: tuple[tuple[int, ...], ...]
    engine_logprobs: tuple[tuple[float, ...], ...]
    rewards: tuple[float, ...]


@dataclass
class Response:
    """A response with what the loss needs for it."""

    group: int
    prompt: PreparedPrompt
    ids: tuple[int, ...]
    engine: tuple[float, ...]
    advantage: float
    weight: float
    """Share of each of its tokens in the update."""
    old: Tensor | None = None
    """Log-probabilities as the step began, where they are not those of the update's own forward pass."""

    @property
    def length(self) -> int:
        """Tokens that it takes through the model alone, with its prompt."""
        return len(self.prompt.encoded.token_ids) + len(self.ids) - 1


@dataclass(frozen=True)
class Unit:
    """A row and its responses."""

    row: Row
    responses: tuple[Response, ...]


def responses_of(
    groups: Sequence[TrainingGroup], advantages: Float[Tensor, "groups size"], weights: Iterable[float]
) -> list[Response]:
    """The responses to compute here, group after group. ``weights``: of all that have a token, in this order."""
    weight = iter(weights)
    weighted = [
        (index, group, place, next(weight))
        for index, group in enumerate(groups)
        for place, ids in enumerate(group.responses)
        if ids
    ]
    return [
        Response(
            index, group.prompt, group.responses[place], group.engine_logprobs[place],
            advantages[index, place].item(), share,
        )
        for index, group, place, share in weighted
        if group.prompt is not None
    ]  # fmt: skip


def micro_batches(responses: Sequence[Response], policy: Policy, budget: int) -> list[list[Unit]]:
    """Micro-batches of at most ``budget`` tokens, each of whole responses.

    A row is a group, or each part of it that fits the budget (the prompt is then computed once a part); where the model
    cannot share a prompt, a response. Rows whose images cannot be stacked are with rows of their own group only.

    Raises:
        Invalid: a prompt with one response is longer than the budget.
    """
    units = _units(responses, budget if policy.shares_prompts else 0)
    stacks: dict[int, list[Unit]] = {}
    for unit in units:
        stacks.setdefault(-1 if policy.mixes_prompts(unit.row) else unit.responses[0].group, []).append(unit)
    divide = packed_batches if policy.shares_prompts else padded_batches
    return [
        [stack[index] for index in batch]
        for stack in stacks.values()
        for batch in divide([len(unit.row) for unit in stack], budget)
    ]


def _units(responses: Sequence[Response], budget: int) -> list[Unit]:
    runs: list[list[Response]] = []
    length = 0
    for response in responses:
        if runs and runs[-1][0].group == response.group and length + len(response.ids) - 1 <= budget:
            runs[-1].append(response)
            length += len(response.ids) - 1
        else:
            runs.append([response])
            length = response.length
    return [Unit(Row(run[0].prompt, tuple(response.ids for response in run)), tuple(run)) for run in runs]
