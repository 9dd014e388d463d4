"""Micro-batches under a token budget."""

from __future__ import annotations

from collections.abc import Sequence

from mor_core.errors import Invalid


def padded_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Divide rows into micro-batches of at most ``budget`` tokens each, padding included.

    Rows are taken in order of length, longest first, so that rows of a micro-batch are padded to nearly their own
    length and the largest micro-batch comes first (memory runs out at once or not at all). Ties keep their order: the
    result is a function of the lengths alone.

    Raises:
        Invalid: a row is longer than the budget.
    """
    batches: list[list[int]] = []
    width = 0
    for row in _longest_first(lengths, budget):
        if batches and (len(batches[-1]) + 1) * width <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
            width = lengths[row]
    return batches


def packed_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Divide rows into micro-batches of at most ``budget`` tokens each, without padding: first fit decreasing, at most
    11/9 of the fewest that are possible (D. S. Johnson, 1973). A function of the lengths alone.

    Raises:
        Invalid: a row is longer than the budget.
    """
    batches: list[list[int]] = []
    room: list[int] = []
    for row in _longest_first(lengths, budget):
        fitting = next((index for index, left in enumerate(room) if lengths[row] <= left), None)
        if fitting is None:
            batches.append([row])
            room.append(budget - lengths[row])
        else:
            batches[fitting].append(row)
            room[fitting] -= lengths[row]
    return batches


def _longest_first(lengths: Sequence[int], budget: int) -> list[int]:
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    if order and lengths[order[0]] > budget:
        raise Invalid(
            f"a sequence of {lengths[order[0]]} tokens does not fit micro_batch_tokens={budget}; "
            "raise micro_batch_tokens or use shorter prompts"
        )
    return order
