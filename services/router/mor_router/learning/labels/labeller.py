"""Protocol of labellers, with its input and output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mor_core.wire import Message

Pair = tuple[int, int]
"""Indices of the better and of the worse response."""


@dataclass(frozen=True)
class SampledGroup:
    """The policy's responses to one question."""

    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    """Distinct, at least two."""
    images: Mapping[str, bytes] = field(repr=False)
    drawn: tuple[str, ...] = ()
    """All responses as the policy drew them, repetitions included."""


class Labeller(Protocol):
    """Source of labels: which of two responses serves an objective better."""

    async def label(self, sampled: SampledGroup, objective: str, timeout_s: float) -> tuple[Pair, ...]:
        """Return pairs of which the first response serves ``objective`` (its text) better, the clearest pair first.

        None: undecided.

        Raises:
            Unavailable: no answer, or an unreadable one.
        """
        ...

    async def close(self) -> None: ...


def ordered_pairs(scores: Sequence[float | None]) -> tuple[Pair, ...]:
    """Return the pairs of indices with different scores, the higher first; the largest difference first.

    ``None`` stands for a response without a score.
    """
    known = [(place, score) for place, score in enumerate(scores) if score is not None]
    pairs = [(high - low, (i, j)) for i, high in known for j, low in known if high > low]
    return tuple(pair for _, pair in sorted(pairs, key=lambda found: -found[0]))
