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


class Labeller(Protocol):
    """Source of labels: which of two responses serves an objective better."""

    async def label(self, sampled: SampledGroup, objective: str, timeout_s: float) -> Pair | None:
        """Choose a response that serves ``objective`` (its text) better than another; ``None``: undecided.

        Raises:
            Unavailable: no answer, or an unreadable one.
        """
        ...

    async def close(self) -> None: ...


def best_and_worst(scores: Sequence[float]) -> Pair | None:
    """Return the indices of the highest and the lowest score; ``None`` where all are equal."""
    best, worst = max(range(len(scores)), key=scores.__getitem__), min(range(len(scores)), key=scores.__getitem__)
    return (best, worst) if scores[best] > scores[worst] else None
