"""Sign-flip test: evidence that a client is useful for an objective in some region of inputs.

Deviation from a plain sign-flip test: the statistic is a maximum over regions of several sizes, which corrects for all
of these tests at once (Westfall & Young 1993). The test covers all anchors that the client scored lately and ignores
the gate's weights.

With d_n the client's standardised difference (chosen − rejected) of anchor n and C_m the anchors of region m of
``regions``, for each of 1, 2, 3, 5 and 8 regions (found without labels) that holds at least 12 anchors:

    z_m = Σ_{n ∈ C_m} d_n / sqrt( Σ_{n ∈ C_m} d²_n )       T = max_m z_m       p = P( T of random signs ≥ T )

If a client's scores are independent of the labels, its differences have signs like coin flips, given their sizes. So
random flips give the distribution of T, with the dependence between regions. A client whose differences are all 0 has
p = 1. Regions are cells, not the gate's soft responsibilities: those mix in scores from neighbouring regions, and a
specialist that misleads there would fail.

``bench/quarantine.py`` counts the errors of the test (table in docs/client-lifecycle.md). Narrow specialists need
several hundred anchors, so anchors are pooled over fits. A client that fails on 320 gets no weight at that fit, which
the next fit can restore; no client is quarantined on fewer than 640.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mor_router.mathematics.regions import fit_regions

LEAST_ANCHORS = 640
"""Anchors on which a client must have failed to be quarantined."""
LEAST_FOR_DOUBT = 320
"""Anchors on which a client must have failed to get no weight at a fit."""
USELESS = 0.1
"""A client fails where p is above this; over several objectives, where p is above this divided by their number."""
USEFUL = 0.01
"""A quarantined client passes where p is at most this."""

_SCALES = (1, 2, 3, 5, 8)
"""Numbers of regions."""
_LEAST_IN_REGION = 12
"""Anchors that a region needs to be tested."""
_FLIPS = 1000
"""Enough to resolve p = 0.01, at which a quarantined client passes."""


def region_cells(inputs: Float[ndarray, "anchors features"]) -> Float[ndarray, "anchors regions"]:
    """Return the membership, 0 or 1, in every region with enough anchors, of all scales side by side."""
    cells = fit_regions(inputs, _SCALES).cells(inputs)
    return np.asarray(cells[:, cells.sum(axis=0) >= _LEAST_IN_REGION])


def p_value(cells: Float[ndarray, "anchors regions"], differences: Float[ndarray, " anchors"]) -> float:
    """Compute p of T, deterministically; 1 where no region has enough anchors."""
    scale = np.sqrt(np.square(cells * differences[:, None]).sum(axis=0))
    decided = scale > 0
    if not decided.any():
        return 1.0
    units = cells[:, decided] * differences[:, None] / scale[decided]
    heads = np.random.default_rng(0).integers(0, 2, size=(_FLIPS, len(differences)), dtype=np.int8)
    chance = ((2.0 * heads - 1) @ units).max(axis=1)
    return float((1 + (chance >= units.sum(axis=0).max() - 1e-9).sum()) / (1 + _FLIPS))
