"""Does a client answer anchors in live traffic as it answers those that it is shown at fits?

With d_n the client's difference (chosen − rejected) in units of its median absolute difference, clipped to ±3, T is the
largest difference over regions (``usefulness.regions``) between the means of the live and the shown anchors, in units
of its standard error. For a client that makes no distinction it does
not matter which of several like anchors are live: permuting that within strata of like inputs (five regions, each
anchor in its nearest) gives the distribution of T, and the maximum corrects for the number of regions (Westfall &
Young 1993). Regions matter, because the mean over all inputs of a specialist that misleads outside of its domain hardly
changes when it turns hostile; strata do, because live anchors may be of other kinds than shown ones.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mor_router.mathematics.regions import fit_regions
from mor_router.mathematics.sign_flip_test import regions

_PERMUTATIONS = 5000
_STRATA = 5
_LARGEST = 3.0
_LEAST = 8
"""Live, and shown, anchors that a region needs."""


def p_value(
    inputs: Float[ndarray, "anchors features"],
    differences: Float[ndarray, " anchors"],
    live: Bool[ndarray, " anchors"],
) -> float:
    """p of T; the same input always gives the same value. 1 where no region has enough anchors of both kinds."""
    cells = regions(inputs)
    spread = np.median(np.abs(differences)) if len(differences) else 0.0
    units = np.clip(differences / spread, -_LARGEST, _LARGEST) if spread else np.sign(differences)
    enough = np.minimum(cells[live].sum(axis=0), cells[~live].sum(axis=0)) >= _LEAST
    if not enough.any():
        return 1.0
    observed = _largest(cells[:, enough], units, live[None, :].astype(float))[0]
    stratum = fit_regions(inputs, (_STRATA,)).cells(inputs).argmax(axis=1)
    random = np.random.default_rng(0)
    shuffled = np.tile(live.astype(np.float32), (_PERMUTATIONS, 1))
    for number in range(_STRATA):
        members = np.flatnonzero(stratum == number)
        shuffled[:, members] = random.permuted(shuffled[:, members], axis=1)
    chance = _largest(cells[:, enough], units, shuffled)
    return float((1 + (chance >= observed - 1e-9).sum()) / (1 + _PERMUTATIONS))


def _largest(
    cells: Float[ndarray, "anchors regions"],
    units: Float[ndarray, " anchors"],
    live: Float[ndarray, "choices anchors"],
) -> Float[ndarray, " choices"]:
    """T for each choice of the live anchors."""
    told = cells * units[:, None]
    counts = [np.maximum(chosen @ cells, 1e-12) for chosen in (live, 1 - live)]
    one, other = (chosen @ told / count for chosen, count in zip((live, 1 - live), counts, strict=True))
    mean = told.sum(axis=0) / cells.sum(axis=0)
    variance = (cells * np.square(units[:, None] - mean)).sum(axis=0) / cells.sum(axis=0)
    error = np.sqrt(np.maximum(variance * sum(1 / count for count in counts), 1e-12))
    return np.asarray((np.abs(one - other) / error).max(axis=1))
