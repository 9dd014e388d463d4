"""Attackers that invert their scores in the situations that they choose, and are honest elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Sight:
    """View that a client has of a live group before it answers."""

    place: int
    """Number of live groups before it."""
    size: int
    repeats: bool
    known_picture: bool


Trigger = Callable[[Sight], bool]

LATE = 150
"""Live groups in which the late-turning attacker is honest. Its groups are counted from then on."""

CLEAN = "none (clean)"
TURNS_LATE = f"turns after {LATE} groups"

ATTACKERS: dict[str, Trigger] = {
    CLEAN: lambda sight: False,
    "inverts groups with a repeated response": lambda sight: sight.repeats,
    "inverts groups of 8": lambda sight: sight.size == 8,
    "inverts groups with a picture seen before": lambda sight: sight.known_picture,
    TURNS_LATE: lambda sight: sight.place >= LATE,
}
