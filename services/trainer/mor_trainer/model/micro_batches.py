"""The groups of an update, divided into micro-batches under a token budget.

A group's way through the trainer:

- ``ScoredGroup``: the group as it came back from the router, with its rewards.
- ``TrainingGroup``: its tokens and rewards, as rank 0 sends them to all ranks.
- ``MicroBatchItem``: the group, or a part of it, on the rank that computes it. It is the ``PackedSequence`` of prompt
  and responses that goes through the model.
- ``LossTokens``: the response tokens of a micro-batch with all that the loss needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mor_core.errors import Invalid

from mor_trainer.model.packed_sequences import PackedSequence, PreparedPrompt
from mor_trainer.model.policy import Policy


@dataclass(frozen=True)
class TrainingGroup:
    """A group to train on, the same on all ranks but for ``prepared``."""

    prompt: int
    """Row of the prompts file."""
    prompt_tokens: int
    responses: tuple[tuple[int, ...], ...]
    """Token ids; none for a response that is not trained on."""
    engine_logprobs: tuple[tuple[float, ...], ...]
    rewards: tuple[float, ...]
    """Of all responses, also of those that are not trained on: they belong to the baseline."""
    prepared: PreparedPrompt | None = None
    """The prompt, on the rank that computes the group; on the others only rewards and lengths count."""
    on_policy: bool = False
    """True if the weights that begin the step sampled it: engine and policy then have the same log-probabilities."""

    def __len__(self) -> int:
        return self.prompt_tokens + sum(map(len, self.responses))


@dataclass(frozen=True)
class MicroBatchItem(PackedSequence):
    """A group of an update, or the part of it that goes through the model in one sequence."""

    group: int
    """Number of the group in the update."""
    members: tuple[int, ...]
    """Numbers of the responses in the group."""


def longest_response(groups: Sequence[TrainingGroup]) -> int:
    """Return the tokens of the longest response with its prompt, of all groups that this rank computes."""
    return max(
        (
            len(group.prepared.processed.token_ids) + len(response) - 1
            for group in groups
            if group.prepared is not None
            for response in group.responses
            if response
        ),
        default=0,
    )


def micro_batches(groups: Sequence[TrainingGroup], policy: Policy, budget: int) -> list[list[MicroBatchItem]]:
    """Divide this rank's groups into micro-batches of at most ``budget`` tokens, each of whole responses.

    An item is a group, or each part of it that fits the budget (the prompt is then computed once for each part). Where
    the model cannot share a prompt, it is a response. Items whose images cannot be stacked are with items of their own
    group only, or alone where the group's prompt is shared: cross attention would see its pictures twice.

    Raises:
        Invalid: a prompt with one response is longer than the budget.
    """
    items = _items(groups, budget if policy.shares_prompts else 0)
    stacks: dict[int, list[MicroBatchItem]] = {}
    for number, item in enumerate(items):
        apart = number if policy.shares_prompts else item.group
        stacks.setdefault(-1 if policy.stacks_with_others(item) else apart, []).append(item)
    divide: Callable[[Sequence[int], int], list[list[int]]] = (
        packed_batches if policy.shares_prompts else padded_batches
    )
    return [
        [stack[index] for index in batch]
        for stack in stacks.values()
        for batch in divide([len(item) for item in stack], budget)
    ]


def _items(groups: Sequence[TrainingGroup], budget: int) -> list[MicroBatchItem]:
    """Divide each group into runs of non-empty responses that fit the budget, or of one response."""
    items = []
    for number, group in enumerate(groups):
        if group.prepared is None:
            continue
        runs: list[list[int]] = []
        length = 0
        for member, response in enumerate(group.responses):
            if not response:
                continue
            if runs and length + len(response) - 1 <= budget:
                runs[-1].append(member)
                length += len(response) - 1
            else:
                runs.append([member])
                length = len(group.prepared.processed.token_ids) + len(response) - 1
        for run in runs:
            responses = tuple(group.responses[member] for member in run)
            items.append(MicroBatchItem(group.prepared, responses, number, tuple(run)))
    return items


def padded_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Divide sequences into micro-batches of at most ``budget`` tokens each, padding included.

    Sequences are taken in order of length, longest first. So those of a micro-batch are padded to nearly their own
    length, and the largest micro-batch comes first (memory runs out at once or not at all). Ties keep their order: the
    result is a function of the lengths alone.

    Raises:
        Invalid: a sequence is longer than the budget.
    """
    batches: list[list[int]] = []
    width = 0
    for index in _longest_first(lengths, budget):
        if batches and (len(batches[-1]) + 1) * width <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            width = lengths[index]
    return batches


def packed_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Divide sequences into micro-batches of at most ``budget`` tokens each, without padding.

    First fit decreasing: at most 11/9 of the fewest micro-batches that are possible (D. S. Johnson, 1973). A function
    of the lengths alone.

    Raises:
        Invalid: a sequence is longer than the budget.
    """
    batches: list[list[int]] = []
    room: list[int] = []
    for index in _longest_first(lengths, budget):
        fitting = next((batch for batch, left in enumerate(room) if lengths[index] <= left), None)
        if fitting is None:
            batches.append([index])
            room.append(budget - lengths[index])
        else:
            batches[fitting].append(index)
            room[fitting] -= lengths[index]
    return batches


def _longest_first(lengths: Sequence[int], budget: int) -> list[int]:
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    if order and lengths[order[0]] > budget:
        raise Invalid(
            f"a sequence of {lengths[order[0]]} tokens does not fit micro_batch_tokens={budget}; "
            "raise micro_batch_tokens or use shorter prompts"
        )
    return order
