"""Form in which the scores of a group leave the service: noisy, centred, as ranks, rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mor_reward.config import AnswerSettings

_FINEST = 2.0**-20
"""Step to which centred scores are rounded, logits, so that their differences are exact: equal differences must stay
equal for a router that compares them with their median."""
_NOISE_STEPS = 256
"""Steps in one standard deviation to which noisy scores are rounded: the low bits of a float that is the sum of a score
and of noise would tell scores apart (Mironov, 2012)."""

Scores = Float[ndarray, " group"]


@dataclass(frozen=True)
class AnswerForm:
    """Changes to the scores of one group, in this order: noise, rounding, then centring or ranks.

    Noise and rounding come first, for each response by itself: what follows is post-processing of limited scores, and a
    response that is asked again among others reveals nothing new. Were scores centred first, every group would shift
    the steps of the rounding, and many groups together would show a score exactly.
    """

    bits: int | None = None
    range: float = 8.0
    """Largest magnitude, logits. Scores are clipped to it before noise, and when they are rounded."""
    centred: bool = False
    ranks: bool = False
    noise: float | None = None
    """Standard deviation, logits."""

    @classmethod
    def of(cls, settings: AnswerSettings) -> AnswerForm:
        return cls(
            bits=settings.score_bits,
            range=settings.score_range,
            centred=settings.score_centred,
            ranks=settings.score_ranks,
            noise=settings.score_noise,
        )

    @property
    def precision(self) -> str:
        """Accuracy with which noise shows a score; empty without noise.

        The same draw of another deviation would show the score: two answers are two equations for it and the draw.
        """
        return "" if self.noise is None else f"{self.noise!r} {self.range!r}"

    def __call__(self, scores: Scores, normals: Scores) -> Scores:
        """Return the scores as they are answered. ``normals``: a standard normal number for each score."""
        step = _FINEST
        if self.noise is not None:
            step = _single(self.noise / _NOISE_STEPS)
            scores = np.clip(scores, -self.range, self.range) + self.noise * normals
            scores = np.rint(scores / step) * step
        if self.bits is not None:
            step = step_of(self.bits, self.range)
            scores = rounded(scores, self.bits, self.range)
        if self.centred:
            scores = centred(scores, step)
        return ranks(scores) if self.ranks else scores


def ranks(scores: Scores) -> Scores:
    """Return ranks from -1 to 1, so that a group of any size has the same span; equal scores share their mean rank."""
    if len(scores) == 1:
        return np.zeros(1)
    ordered = np.sort(scores)
    below, upto = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return np.asarray((below + upto - 1) / (len(scores) - 1) - 1)


def centred(scores: Scores, step: float) -> Scores:
    """Round scores to multiples of ``step`` and shift them to mean 0.

    The result follows from the differences of the rounded scores alone: a shift by a mean of the scores themselves
    would leave their level in the low bits of the result.
    """
    above = np.rint((scores - scores.min()) / step)
    mean = float(np.rint(above.mean() * step / _FINEST) * _FINEST)
    return np.asarray(above * step - mean)


def rounded(scores: Scores, bits: int, most: float) -> Scores:
    """Round to the nearest of 2**bits values that are evenly spaced from -most to most."""
    step, middle = step_of(bits, most), (2**bits - 1) / 2
    return np.asarray((np.clip(np.rint(scores / step + middle), 0, 2 * middle) - middle) * step)


def step_of(bits: int, most: float) -> float:
    """Return the spacing of 2**bits values from -most to most."""
    return _single(2 * most / (2**bits - 1))


def _single(step: float) -> float:
    """Round a step to the digits of single precision, so that all differences of its multiples are exact."""
    mantissa, exponent = math.frexp(step)
    return math.ldexp(float(np.float32(mantissa)), exponent)


def as_array(scores: Sequence[float]) -> Scores:
    return np.array(scores, dtype=np.float64)
