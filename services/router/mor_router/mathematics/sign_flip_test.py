"""Is a client of any use for an objective? A test on all anchors that it has scored lately, whatever the gate says.

With d_n the client's standardised difference (chosen − rejected) of anchor n and C_m the anchors of region m of
``regions``, for each of 1, 2, 3, 5 and 8 regions (found without labels) that holds at least 12 anchors:

    z_m = Σ_{n ∈ C_m} d_n / sqrt( Σ_{n ∈ C_m} d²_n )       T = max_m z_m       p = P( T of random signs ≥ T )

The differences of a client that tells nothing of the labels have signs like coin flips, given their sizes, so flipping
them at random gives the distribution of T with the dependence between regions: the maximum corrects for all of the
tests at once (Westfall & Young 1993). A client that never makes a difference has p = 1. Regions are cells, not the
gate's soft responsibilities: those mix into each region what the client says in its neighbours, and a specialist that
misleads there would fail.

``bench/quarantine.py`` counts how often it errs (table in docs/client-lifecycle.md). Narrow specialists need some
hundred anchors, so anchors are pooled over fits: whoever fails on 320 gets no weight at that fit, which the next can
give back; nobody is quarantined on fewer than 640.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mor_router.mathematics.regions import fit_regions

LEAST_ANCHORS = 640
"""Anchors on which a client must have failed to be quarantined."""
LEAST_FOR_DOUBT = 320
"""Anchors on which a client must have failed to be fitted no weight."""
USELESS = 0.1
"""A client fails where p is above; over several objectives, where it is above this divided by their number."""
USEFUL = 0.01
"""A quarantined client passes where p is at most this."""

_SCALES = (1, 2, 3, 5, 8)
_LEAST_IN_REGION = 12
_FLIPS = 1000


def regions(inputs: Float[ndarray, "anchors features"]) -> Float[ndarray, "anchors regions"]:
    """Membership, 0 or 1, in every region that holds enough anchors, of all granularities side by side."""
    cells = fit_regions(inputs, _SCALES).cells(inputs)
    return np.asarray(cells[:, cells.sum(axis=0) >= _LEAST_IN_REGION])


def p_value(cells: Float[ndarray, "anchors regions"], differences: Float[ndarray, " anchors"]) -> float:
    """p of T; the same input always gives the same value. 1 where no region has enough anchors."""
    scale = np.sqrt(np.square(cells * differences[:, None]).sum(axis=0))
    told = scale > 0
    if not told.any():
        return 1.0
    units = cells[:, told] * differences[:, None] / scale[told]
    heads = np.random.default_rng(0).integers(0, 2, size=(_FLIPS, len(differences)), dtype=np.int8)
    chance = ((2.0 * heads - 1) @ units).max(axis=1)
    return float((1 + (chance >= units.sum(axis=0).max() - 1e-9).sum()) / (1 + _FLIPS))
