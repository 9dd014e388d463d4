"""Batches of sequences of similar size."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

MAX_PADDING = 1.5
"""Largest ratio of a batch's work to that which counts without its padding: few calls against little padding."""


def similar(sizes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Group indices of items whose work is the product of their sizes, within the padding that is allowed.

    A batch is padded to its largest size in each dimension.
    """
    batches: list[list[int]] = []
    counted = 0
    for index in sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True):
        own = prod(sizes[index])
        batch = [*batches[-1], index] if batches else [index]
        padded = len(batch) * prod(max(sizes[one][axis] for one in batch) for axis in range(len(sizes[index])))
        if batches and padded <= MAX_PADDING * (counted + own):
            batches[-1] = batch
            counted += own
        else:
            batches.append([index])
            counted = own
    return batches
