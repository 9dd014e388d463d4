"""Calibration of a reward model's logits: temperature, expected calibration error, accuracy on labelled pairs.

All functions take *margins*, the score differences r⁺ − r⁻ of labelled pairs: a positive margin agrees with the label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from mor_core.intervals import wilson

Margins = Float[np.ndarray, " pairs"]

_MAX_SHARPNESS = 1e4
_MIN_SHARPNESS = 1e-4
"""Bracket of the bisection for 1/T in units of the mean |margin|; wide enough for any usable model."""


@dataclass(frozen=True)
class PairReport:
    """Agreement of margins, divided by a temperature, with the labels of held-out pairs."""

    pairs: int
    accuracy: float
    interval: tuple[float, float]
    """95 % Wilson interval of ``accuracy``."""
    ece: float
    nll: float
    """Mean negative log-likelihood of the labels, nats per pair; ln 2 is chance level."""


def fit_temperature(margins: Margins) -> float:
    """Fit the temperature T > 0 that maximises the likelihood of σ(margin / T).

    The likelihood is that of Platt's smoothed labels (n + 1)/(n + 2) instead of 1 (Platt 1999), so that T stays finite
    when every pair is ranked correctly. It is concave in 1/T; bisection finds the root. Margins that contradict
    the labels give the largest temperature, at which scores are close to uninformative.

    Raises:
        ValueError: there are no margins, or one is not finite.
    """
    if margins.size == 0 or not np.isfinite(margins).all():
        raise ValueError(
            f"got {margins.size} margins, {int((~np.isfinite(margins)).sum())} of them not finite; give finite margins"
        )
    unit = float(np.abs(margins).mean()) or 1.0
    scaled = margins / unit
    label = (margins.size + 1) / (margins.size + 2)

    def slope(sharpness: float) -> float:
        probability = _sigmoid(sharpness * scaled)
        return float(np.mean((label - probability) * scaled))

    low, high = _MIN_SHARPNESS, _MAX_SHARPNESS
    if slope(low) <= 0:
        return unit / low
    for _ in range(100):  # far below the precision of a float
        middle = math.sqrt(low * high)
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    return unit / low


def expected_calibration_error(margins: Margins, bins: int = 10) -> float:
    """Return Σ_b (n_b/n)·|accuracy_b − confidence_b| over equal confidence bins, ½ to 1 (Guo et al. 2017, eq. 3).

    The confidence of a pair is σ(|margin|), the probability of the response that the model prefers. A margin of zero
    counts as half correct.
    """
    confidence = _sigmoid(np.abs(margins))
    right = _right(margins)
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = [abs(float((right[index == b] - confidence[index == b]).sum())) for b in range(bins)]
    return sum(gaps) / margins.size


def report(margins: Margins, temperature: float) -> PairReport:
    """Measure the agreement of margins / ``temperature`` with the labels."""
    calibrated = margins / temperature
    right = float(_right(margins).sum())
    return PairReport(
        pairs=int(margins.size),
        accuracy=right / margins.size,
        interval=wilson(right, margins.size),
        ece=expected_calibration_error(calibrated),
        nll=float(np.logaddexp(0.0, -calibrated).mean()),
    )


def _right(margins: Margins) -> Margins:
    right: Margins = (margins > 0) + 0.5 * (margins == 0)
    return right


def _sigmoid(x: Margins) -> Margins:
    probability: Margins = np.exp(-np.logaddexp(0.0, -x))
    return probability
