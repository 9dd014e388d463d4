"""What a labeller is given and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mor_core.wire import Message

Pair = tuple[int, int]
"""Places of the better and of the worse response."""


@dataclass(frozen=True)
class Sampled:
    """The policy's responses to one question."""

    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    """Distinct, at least two."""
    images: Mapping[str, bytes] = field(repr=False)


class Labeller(Protocol):
    async def label(self, sampled: Sampled, objective: str, timeout_s: float) -> Pair | None:
        """Which response serves ``objective`` (its text) better than which; ``None``: it cannot tell.

        Raises:
            Unavailable: it did not answer, or with nonsense.
        """
        ...

    async def close(self) -> None: ...


def best_and_worst(scores: Sequence[float]) -> Pair | None:
    """Places of the highest and the lowest score; ``None`` where all are equal."""
    best, worst = max(range(len(scores)), key=scores.__getitem__), min(range(len(scores)), key=scores.__getitem__)
    return (best, worst) if scores[best] > scores[worst] else None
