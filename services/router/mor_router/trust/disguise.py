"""An anchor in the shape of a live group: as many responses, in random order, the two that are compared among them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mor_router.objectives.objective_store import Anchor

_random = random.SystemRandom()  # what a client could predict would give anchors away


@dataclass(frozen=True)
class Disguised:
    anchor: Anchor
    responses: tuple[str, ...]
    chosen: int
    """Place of the anchor's chosen response among ``responses``."""
    rejected: int


def disguise(anchor: Anchor, size: int, fillers: Sequence[str]) -> Disguised:
    """A group of ``size`` responses in random order: the anchor's two, and the first others of ``fillers``, repeated
    where they are too few, as a policy repeats itself.

    Raises:
        ValueError: a group of one response compares nothing.
    """
    if size < 2:
        raise ValueError(f"an anchor needs a group of two responses or more, not {size}")
    others = [text for text in dict.fromkeys(fillers) if text not in (anchor.chosen, anchor.rejected)]
    wanted = size - 2
    taken = others[:wanted]
    taken += _random.choices(taken or [anchor.chosen, anchor.rejected], k=wanted - len(taken))
    texts = [anchor.chosen, anchor.rejected, *taken]
    order = _random.sample(range(size), size)
    return Disguised(anchor, tuple(texts[place] for place in order), order.index(0), order.index(1))
