"""Interface of reward models that score a group by waiting for something else: an upstream or a client's function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from mor_core.errors import MorError, Unavailable

if TYPE_CHECKING:  # backbones load PyTorch, and settings of an upstream are checked before that
    from mor_reward.backbones import Example

_RETRY_AFTER_S = 5.0
"""Seconds after which a caller may find the model back."""


class ModelAway(Unavailable):
    """The model cannot be reached, is overloaded, refuses the key, or did not answer in time."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=_RETRY_AFTER_S)


class BrokenAnswer(MorError):
    """Answer of a model that does not fit the group. The message quotes nothing of it."""


class GroupScorer(Protocol):
    """Scorer of groups, many at a time."""

    uses_pictures: bool
    """``False`` if the scorer ignores pictures."""

    def context(self, group: Sequence[Example]) -> str:
        """Return what a score depends on besides its question and response; empty for most models.

        Noise and memory of answers follow from it: scores that differ by it are different answers."""
        ...

    @property
    def version(self) -> str:
        """Version of the model now; it may change while the service runs."""
        ...

    async def score(self, group: Sequence[Example], *, caller: str, deadline: float) -> Sequence[float | None]:
        """Return a raw score for each example of one context, ``None`` where the model gives none.

        ``deadline``: monotonic time, seconds.

        Raises:
            ModelAway: the model is away.
            Invalid: the model cannot judge this group.
            BrokenAnswer: the answer does not fit.
        """
        ...

    async def problem(self) -> str | None:
        """Return why the model cannot be called; ``None`` while it can."""
        ...

    async def close(self) -> None:
        """Close connections and threads."""
        ...
