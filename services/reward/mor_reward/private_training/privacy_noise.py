"""Noise from the operating system's cryptographic generator, for the mechanisms that protect private data."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

RandomBytes = Callable[[int], bytes]
"""Source of random bytes: ``os.urandom``, in tests a deterministic one."""
_GRID = 2.0**-20
"""Spacing of the released numbers as a share of the noise's deviation. Their low bits, in which the floats of a sampled
Gaussian betray the number below the noise (Mironov 2012), are rounded away."""


class PrivacyNoise:
    """Source of the random numbers of all private mechanisms.

    It has no seed on purpose: who can repeat the noise can subtract it. Two trainings of equal configuration differ.
    """

    def __init__(self, random_bytes: RandomBytes = os.urandom) -> None:
        self._bytes = random_bytes

    def uniform(self, count: int) -> Float[np.ndarray, " count"]:
        """Draw numbers of (0, 1], multiples of 2⁻⁵³."""
        words = np.frombuffer(self._bytes(8 * count), dtype="<u8")
        drawn: Float[np.ndarray, " count"] = ((words >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53
        return drawn

    def gaussian(self, count: int) -> Float[np.ndarray, " count"]:
        """Draw standard normal numbers (Box and Muller 1958)."""
        half = (count + 1) // 2
        radius, angle = np.sqrt(-2 * np.log(self.uniform(half))), 2 * math.pi * self.uniform(half)
        both: Float[np.ndarray, " both"] = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return both[:count]

    def add(self, values: Float[np.ndarray, " count"], sigma: float) -> Float[np.ndarray, " count"]:
        """Add noise of standard deviation ``sigma`` to ``values`` and round to a grid, in double precision."""
        grid = sigma * _GRID
        noisy = values.astype(np.float64) + sigma * self.gaussian(values.size)
        rounded: Float[np.ndarray, " count"] = np.round(noisy / grid) * grid
        return rounded

    def sampled(self, count: int, rate: float) -> list[int]:
        """Draw each of ``count`` numbers with probability ``rate``, independently (Poisson sampling)."""
        return [int(index) for index in np.flatnonzero(self.uniform(count) <= rate)]

    def choose(self, weights: Sequence[float]) -> int:
        """Draw an index with probability proportional to its weight."""
        total = np.cumsum(np.asarray(weights, dtype=np.float64))
        return int(np.searchsorted(total, self.uniform(1)[0] * total[-1]))
