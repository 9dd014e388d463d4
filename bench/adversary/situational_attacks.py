"""Attackers that are honest on anchors, and invert their scores or answer with noise in live groups that they choose.

Equal responses always get equal scores, so that no comparison within a group gives an attacker away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray


@dataclass(frozen=True)
class Sight:
    """View that a client has of a live group before it answers."""

    place: int
    """Number of live groups before it."""
    texts: Int[ndarray, " size"]
    """Number of each response's text: equal numbers are repetitions."""
    known_picture: bool
    domain: str
    unit: float
    """Typical difference between two honest scores of the client, raw units."""

    @property
    def size(self) -> int:
        return len(self.texts)

    @property
    def repeats(self) -> bool:
        return len(set(self.texts.tolist())) < self.size


Scores = Float[ndarray, " size"]
Trigger = Callable[[Sight], bool]
Attack = Callable[[Sight, Scores, np.random.Generator], Scores]
"""Function from the client's view of a group, its honest scores and a random generator to the scores that it gives."""

LATE = 150
"""Live groups in which the late-turning attacker is honest. Its groups are counted from then on."""
_LARGEST = 1e6
"""Size of the largest scores, in units: far beyond what counts."""


def inverts(trigger: Trigger) -> Attack:
    """Invert the scores of the groups that ``trigger`` chooses."""
    return lambda sight, honest, random: -honest if trigger(sight) else honest


def noise(size: float, *, honest_part: float = 0.0, trigger: Trigger = lambda sight: True) -> Attack:
    """Add ±``size`` units at random to a part of the honest scores, in the groups that ``trigger`` chooses."""

    def answer(sight: Sight, honest: Scores, random: np.random.Generator) -> Scores:
        signs = random.choice((-1.0, 1.0), size=sight.size)
        first = (sight.texts[:, None] == sight.texts).argmax(axis=1)
        return honest_part * honest + size * sight.unit * signs[first] if trigger(sight) else honest

    return answer


def _gaussian(sight: Sight, honest: Scores, random: np.random.Generator) -> Scores:
    first = (sight.texts[:, None] == sight.texts).argmax(axis=1)
    return sight.unit * random.normal(size=sight.size)[first]


def _random_signs(sight: Sight, honest: Scores, random: np.random.Generator) -> Scores:
    return random.choice((-1.0, 1.0)) * honest


def _half(attack: Attack) -> Attack:
    return lambda sight, honest, random: attack(sight, honest, random) if random.random() < 0.5 else honest


CLEAN = "none (clean)"
WEAK = "none, honest and weak"
HONEST = (CLEAN, WEAK)
_NOISE_LATE = f"noise, largest scores, after {LATE} groups"
_TURNS_LATE = f"turns after {LATE} groups"
LATE_ATTACKERS = (_TURNS_LATE, _NOISE_LATE)

ATTACKERS: dict[str, Attack] = {
    CLEAN: lambda sight, honest, random: honest,
    WEAK: lambda sight, honest, random: honest,
    "inverts groups with a repeated response": inverts(lambda sight: sight.repeats),
    "inverts groups of 8": inverts(lambda sight: sight.size == 8),
    "inverts groups with a picture seen before": inverts(lambda sight: sight.known_picture),
    _TURNS_LATE: inverts(lambda sight: sight.place >= LATE),
    "inverts every second group, at random": _random_signs,
    "noise, 1 unit": noise(1),
    "noise, 3 units": noise(3),
    "noise, largest scores": noise(_LARGEST),
    "noise, Gaussian": _gaussian,
    "noise of 1 unit on honest scores": noise(1, honest_part=1),
    "noise of 3 units on honest scores": noise(3, honest_part=1),
    "noise, largest scores, in half of the groups": _half(noise(_LARGEST)),
    "noise, largest scores, in one domain": noise(_LARGEST, trigger=lambda sight: sight.domain == "detail"),
    _NOISE_LATE: noise(_LARGEST, trigger=lambda sight: sight.place >= LATE),
}
