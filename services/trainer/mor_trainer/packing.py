"""Micro-batches under a token budget, with little padding."""

from __future__ import annotations

from collections.abc import Sequence

from mor_core.errors import Invalid


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Divide rows into micro-batches of at most ``budget`` tokens each, padding included.

    Rows are taken in order of length, longest first, so that rows of a micro-batch are padded to nearly their own
    length and the largest micro-batch comes first (memory runs out at once or not at all). Ties keep their order: the
    result is a function of the lengths alone.

    Raises:
        Invalid: a row is longer than the budget.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    if order and lengths[order[0]] > budget:
        raise Invalid(
            f"a sequence of {lengths[order[0]]} tokens does not fit micro_batch_tokens={budget}; "
            "raise micro_batch_tokens or use shorter prompts"
        )
    batches: list[list[int]] = []
    width = 0
    for row in order:
        if batches and (len(batches[-1]) + 1) * width <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
            width = lengths[row]
    return batches
