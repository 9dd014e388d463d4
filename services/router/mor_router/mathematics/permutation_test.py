"""Permutation test: evidence that a client scores anchors in live traffic differently from those shown at fits.

Deviation from a plain two-sample permutation test: the statistic is a maximum over regions, which corrects for their
number (Westfall & Young 1993), and labels are permuted within strata of similar inputs.

With d_n the client's difference (chosen − rejected) in units of its median absolute difference, clipped to ±3:

    T = max over regions of | mean d of live anchors − mean d of shown anchors | / standard error

The regions are those of ``sign_flip_test.region_cells``. If a client makes no distinction, it does not matter which of
several similar anchors are live. So permuting the live ones within strata (five regions, each anchor in its nearest)
gives the distribution of T. Regions are needed because a specialist misleads outside its domain anyway: its mean over
all inputs hardly changes when it turns hostile. Strata are needed because live anchors may differ in kind from shown
ones.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mor_router.mathematics.regions import fit_regions
from mor_router.mathematics.sign_flip_test import region_cells

_PERMUTATIONS = 5000
"""Enough to resolve p = 0.0005, at which a client is distrusted (``trust.answer_reconciliation``)."""
_STRATA = 5
"""Strata of similar inputs: few, so that most of them have live and shown anchors."""
_LARGEST = 3.0
"""Clip of a difference, in median absolute differences: one outlier must not decide a region."""
_LEAST = 8
"""Live anchors, and shown anchors, that a region needs to be tested."""


def p_value(
    inputs: Float[ndarray, "anchors features"],
    differences: Float[ndarray, " anchors"],
    live: Bool[ndarray, " anchors"],
) -> float:
    """Compute p of T, deterministically; 1 where no region has enough anchors of both kinds."""
    cells = region_cells(inputs)
    spread = np.median(np.abs(differences)) if len(differences) else 0.0
    units = np.clip(differences, -_LARGEST * spread, _LARGEST * spread) / spread if spread else np.sign(differences)
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
    """Compute T for each choice of the live anchors."""
    by_region = cells * units[:, None]
    counts = [np.maximum(chosen @ cells, 1e-12) for chosen in (live, 1 - live)]
    one, other = (chosen @ by_region / count for chosen, count in zip((live, 1 - live), counts, strict=True))
    mean = by_region.sum(axis=0) / cells.sum(axis=0)
    variance = (cells * np.square(units[:, None] - mean)).sum(axis=0) / cells.sum(axis=0)
    error = np.sqrt(np.maximum(variance * sum(1 / count for count in counts), 1e-12))
    return np.asarray((np.abs(one - other) / error).max(axis=1))
