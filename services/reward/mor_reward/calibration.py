"""How far a reward model's logits may be believed: temperature, expected calibration error, Wilson interval.

All functions take *margins*, the scores' differences r⁺ − r⁻ of labelled pairs: a positive margin ranks its pair as
labelled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Margins = Float[np.ndarray, " pairs"]

_Z95 = 1.959963984540054
_MOST_SHARPNESS = 1e4
_LEAST_SHARPNESS = 1e-4


@dataclass(frozen=True)
class PairReport:
    """How margins, divided by a temperature, agree with the labels of held-out pairs."""

    pairs: int
    accuracy: float
    interval: tuple[float, float]
    """95 % Wilson interval of ``accuracy``."""
    ece: float
    nll: float
    """Mean negative log-likelihood of the labels, nats a pair; ln 2 says nothing was learnt."""


def wilson_interval(successes: float, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927). ``z`` is the normal quantile, 1.96 for 95 %.

    Raises:
        ValueError: ``trials`` is not positive.
    """
    if trials <= 0:
        raise ValueError(f"an interval needs at least one trial, got {trials}")
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def fit_temperature(margins: Margins) -> float:
    """The temperature T > 0 that makes σ(margin / T) most likely.

    The likelihood is that of Platt's smoothed labels (n + 1)/(n + 2) instead of 1 (Platt 1999), so that T stays finite
    when every pair is ranked right. It is concave in 1/T; its root is found by bisection. Margins that speak against
    the labels give the largest temperature, at which the scores say next to nothing.

    Raises:
        ValueError: no margins, or one that is not finite.
    """
    if margins.size == 0 or not np.isfinite(margins).all():
        raise ValueError(f"a temperature needs finite margins, got {margins.size} of which some may be NaN")
    unit = float(np.abs(margins).mean()) or 1.0
    scaled = margins / unit
    label = (margins.size + 1) / (margins.size + 2)

    def slope(sharpness: float) -> float:
        probability = _sigmoid(sharpness * scaled)
        return float(np.mean((label - probability) * scaled))

    low, high = _LEAST_SHARPNESS, _MOST_SHARPNESS
    if slope(low) <= 0:
        return unit / low
    for _ in range(100):
        middle = math.sqrt(low * high)
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    return unit / low


def expected_calibration_error(margins: Margins, bins: int = 10) -> float:
    """Σ_b (n_b / n)·|accuracy_b − confidence_b| over equal bins of the confidence, ½ to 1 (Guo et al. 2017, eq. 3).

    The confidence of a pair is σ(|margin|): what the model gives the response that it prefers. A margin of zero is
    right half of the time.
    """
    confidence = _sigmoid(np.abs(margins))
    right = _right(margins)
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = [abs(float((right[index == b] - confidence[index == b]).sum())) for b in range(bins)]
    return sum(gaps) / margins.size


def report(margins: Margins, temperature: float) -> PairReport:
    """Agreement of margins / ``temperature`` with the labels."""
    calibrated = margins / temperature
    right = float(_right(margins).sum())
    return PairReport(
        pairs=int(margins.size),
        accuracy=right / margins.size,
        interval=wilson_interval(right, margins.size),
        ece=expected_calibration_error(calibrated),
        nll=float(np.logaddexp(0.0, -calibrated).mean()),
    )


def _right(margins: Margins) -> Margins:
    right: Margins = (margins > 0) + 0.5 * (margins == 0)
    return right


def _sigmoid(x: Margins) -> Margins:
    probability: Margins = np.exp(-np.logaddexp(0.0, -x))
    return probability
