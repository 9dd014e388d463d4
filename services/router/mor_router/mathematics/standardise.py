"""Standardisation of one client's raw scores: no scale, offset or outlier of the client moves the result.

Deviation from robust z-scores: deviations saturate by tanh. That bounds outliers and keeps the order of a group's
scores, which clipping loses.

A group's scores s_1..s_G are split into the group's level m = median(s) and the deviations s_i − m, because a
Bradley–Terry score is defined within a group only. With |Δ| the absolute within-group differences on the anchors that
are no ties:

    spread  = median |Δ|                       the median absolute deviation of the differences (they are symmetric)
    limit   = 2 · spread · known
    s̃_i    = (clip(m − centre, low, high) + limit · tanh((s_i − m) / limit)) / spread   level within ±5 spreads · known

A deviation counts in full while it is small, and no outlier counts more than ``limit``. ``centre`` is the median of the
anchor scores and ``low``..``high`` their 1–99 % range around it. The level carries no preference; it only makes rewards
of different groups comparable on a plot.

A tie is evidence of nothing. A client with many would have a median near 0, and the rest of its scores would be divided
by it, so ties are left out. ``known`` is the number of differing pairs over 8 (over all pairs, where there are fewer),
at most 1: scores count little whose spread is measured by a few pairs among ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_SATURATION = 2.0
"""``limit`` in units of ``spread``."""
_LEAST_SPREAD = 1e-9
"""Smallest difference that counts, raw units. Scores reach 1e9, so without it a client could score almost equally and
have its rare larger scores divided by next to nothing."""
_TIE = 0.01
"""Share of a client's large differences (nine of ten are smaller) up to which another one is a tie: half precision
rounds scores by about that."""
_ENOUGH = 8
"""Differing pairs among ties by which a spread is known well enough for scores to count in full: the median of so many
is within a factor of two of the true one in nine cases of ten."""
_LARGEST_LEVEL = 5.0
"""Largest level in units of ``spread``, twice the range of a client whose prompts are alike. Evaluations and
charts show levels, and those of a client that says much about prompts and little about responses drowned the rest."""


@dataclass(frozen=True)
class Standardiser:
    """Fitted scale and level of one client."""

    spread: float
    """Median absolute within-group difference, ties left out, raw units; 1 for a client that only ties."""
    limit: float
    """Bound that the largest deviation from the group's median approaches, raw units; 0 where none counts."""
    centre: float
    """Median score, raw units."""
    low: float
    """Lowest level that counts, relative to ``centre``, raw units."""
    high: float
    """Highest level that counts, relative to ``centre``, raw units."""

    def __call__(self, scores: Float[ndarray, "*batch group"]) -> Float[ndarray, "*batch group"]:
        """Standardise raw scores of whole groups. Equal scores stay equal."""
        return _standardised(scores, self._bounds())

    def _bounds(self) -> tuple[float, float, float, float, float]:
        """Return spread, limit, centre, and the lowest and highest level, as they are used."""
        spread = max(self.spread, _LEAST_SPREAD)
        limit = max(self.limit, _LEAST_SPREAD) if self.limit else 0.0
        most = _LARGEST_LEVEL * spread
        return spread, limit, self.centre, max(-most, min(most, self.low)), max(-most, min(most, self.high))


def standardise_group(
    standardisers: Sequence[Standardiser], scores: Float[ndarray, "clients group"]
) -> Float[ndarray, "clients group"]:
    """Standardise the raw scores of one group, those of each client by its own standardiser."""
    bounds = np.array([standardiser._bounds() for standardiser in standardisers]).reshape(-1, 5, 1)
    return _standardised(scores, bounds.swapaxes(0, 1))


def _standardised(
    scores: Float[ndarray, "*batch group"], bounds: Sequence[float] | Float[ndarray, "5 clients 1"]
) -> Float[ndarray, "*batch group"]:
    spread, limit, centre, low, high = bounds
    level = median(scores)
    deviation = limit * np.tanh((scores - level) / np.where(limit, limit, 1.0))
    return np.asarray((np.clip(level - centre, low, high) + deviation) / spread)


def median(scores: Float[ndarray, "*batch group"]) -> Float[ndarray, "*batch 1"]:
    """Compute the median of each group. For a few responses ``np.median`` takes ten times as long."""
    ordered, count = np.sort(scores, axis=-1), scores.shape[-1]
    low, high = (count - 1) // 2, count // 2
    return np.asarray((ordered[..., low : low + 1] + ordered[..., high : high + 1]) / 2)


def fit_standardiser(scores: Float[ndarray, "pairs 2"]) -> Standardiser:
    """Fit on the raw scores of pairs of responses to one prompt. The order within a pair does not matter.

    A client whose differences are all ties has limit 0 and level 0: its scores become 0.

    Raises:
        ValueError: no pairs.
    """
    if not len(scores):
        raise ValueError("got no pairs of scores; a standardiser needs at least one")
    differences = np.abs(scores[:, 0] - scores[:, 1])
    differing = differences[differences >= _LEAST_SPREAD]
    if len(differing):
        differing = differing[differing > _TIE * np.quantile(differing, 0.9)]
    spread = float(np.median(differing)) if len(differing) else 1.0
    known = min(1.0, len(differing) / min(len(scores), _ENOUGH))
    most = _LARGEST_LEVEL * spread * known
    centre = float(np.median(scores))
    low, high = np.clip(np.quantile(scores - centre, (0.01, 0.99)), -most, most)
    return Standardiser(
        spread=spread,
        limit=_SATURATION * spread * known,
        centre=centre,
        low=float(low),
        high=float(high),
    )
