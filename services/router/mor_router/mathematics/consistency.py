"""Does a client answer anchors in live traffic as it answers those that it is shown at fits?

With d_n the client's difference (chosen − rejected) in units of its median absolute difference, clipped to ±3, and φ_mn
the responsibility of region m (``usefulness.regions``), T is the largest difference over regions between the φ-weighted
means of the live and the shown anchors, in units of its standard error. For a client that makes no distinction it does
not matter which of several like anchors are live: permuting that within strata of like inputs (five regions, each
anchor in its likeliest) gives the distribution of T, and the maximum corrects for the number of regions (Westfall &
Young 1993). Regions matter, because the mean over all inputs of a specialist that misleads outside of its domain hardly
changes when it turns hostile; strata do, because live anchors may be of other kinds than shown ones.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mor_router.mathematics.regions import fit_regions
from mor_router.mathematics.usefulness import regions

_PERMUTATIONS = 5000
_STRATA = 5
_LARGEST = 3.0
_LEAST = 8.0
"""Live, and shown, anchors that a region needs, by Kish's count."""


def p_value(
    inputs: Float[ndarray, "anchors features"],
    differences: Float[ndarray, " anchors"],
    live: Bool[ndarray, " anchors"],
) -> float:
    """p of T; the same input always gives the same value. 1 where no region has enough anchors of both kinds."""
    responsibilities = regions(inputs)
    spread = np.median(np.abs(differences)) if len(differences) else 0.0
    units = np.clip(differences / spread, -_LARGEST, _LARGEST) if spread else np.sign(differences)
    enough = np.minimum(_kish(responsibilities[live]), _kish(responsibilities[~live])) >= _LEAST
    if not enough.any():
        return 1.0
    weights = responsibilities[:, enough]
    observed = _largest(weights, units, live[None, :].astype(float))[0]
    fine = fit_regions(inputs, (_STRATA,))
    stratum = fine.responsibilities(inputs).argmax(axis=1)
    random = np.random.default_rng(0)
    shuffled = np.tile(live.astype(np.float32), (_PERMUTATIONS, 1))
    for number in range(_STRATA):
        members = np.flatnonzero(stratum == number)
        shuffled[:, members] = random.permuted(shuffled[:, members], axis=1)
    chance = _largest(weights, units, shuffled)
    return float((1 + (chance >= observed - 1e-9).sum()) / (1 + _PERMUTATIONS))


def _largest(
    weights: Float[ndarray, "anchors regions"],
    units: Float[ndarray, " anchors"],
    live: Float[ndarray, "choices anchors"],
) -> Float[ndarray, " choices"]:
    """T for each choice of the live anchors."""
    parts = []
    for chosen in (live, 1 - live):
        total = np.maximum(chosen @ weights, 1e-12)
        parts.append((chosen @ (weights * units[:, None]) / total, chosen @ np.square(weights) / np.square(total)))
    (one, one_share), (other, other_share) = parts
    centred = units[:, None] - (weights * units[:, None]).sum(axis=0) / weights.sum(axis=0)
    variance = (weights * np.square(centred)).sum(axis=0) / weights.sum(axis=0)
    error = np.sqrt(np.maximum(variance * (one_share + other_share), 1e-12))
    return np.asarray((np.abs(one - other) / error).max(axis=1))


def _kish(weights: Float[ndarray, "anchors regions"]) -> Float[ndarray, " regions"]:
    return np.asarray(weights.sum(axis=0) ** 2 / np.maximum(np.square(weights).sum(axis=0), 1e-12))
