"""Temperature and held-out figures that may be released: each unit of their own splits changes them within (ε, δ).

No unit is in two splits, so training, temperature and figures do not add up: each unit is protected by one of them.
"""

from __future__ import annotations

import math

import numpy as np
from mor_core.intervals import Z_95, wilson
from mor_core.wire import Calibration

from mor_reward.calibration import Margins
from mor_reward.private_training.accounting import gaussian_mu
from mor_reward.private_training.privacy_noise import PrivacyNoise
from mor_reward.private_training.privacy_units import PrivacyUnits

_TEMPERATURES = 2.0 ** np.arange(-8, 8.25, 0.25)
"""Candidates of the temperature, which are the same for all data."""
_LARGEST_LOSS = 2.0
"""Nats at which the loss of a pair is cut off in the choice of the temperature; ln 2 is that of a guess."""


def private_temperature(margins: Margins, units: PrivacyUnits, epsilon: float, noise: PrivacyNoise) -> float:
    """Choose a temperature of high likelihood by the exponential mechanism, with ``epsilon`` and δ = 0.

    A unit that is left out changes the loss of each candidate by at most ``_LARGEST_LOSS``, in the same direction, so
    that no factor of ½ is due.
    """
    losses = np.minimum(np.logaddexp(0.0, -margins[:, None] / _TEMPERATURES), _LARGEST_LOSS)
    utility = -units.means(losses).sum(0)
    weights = [math.exp(epsilon / _LARGEST_LOSS * (value - utility.max())) for value in utility]
    return float(_TEMPERATURES[noise.choose(weights)])


def private_calibration(
    margins: Margins, temperature: float, units: PrivacyUnits, *, epsilon: float, delta: float, noise: PrivacyNoise
) -> Calibration:
    """Measure accuracy and calibration error with Gaussian noise; the interval includes the noise's spread.

    A unit counts by the mean over its pairs. Left out, it changes each of the two sums by at most 1, so both by √2.
    """
    right = float(units.means((margins > 0) + 0.5 * (margins == 0)).sum())
    sigma = math.sqrt(2) / gaussian_mu(epsilon, delta)
    noisy = noise.add(np.array([right, _calibration_gap(margins / temperature, units)]), sigma) / len(units)
    accuracy, ece = (float(share) for share in np.clip(noisy, 0.0, 1.0))
    low, high = wilson(accuracy * len(units), len(units))
    spread = Z_95 * sigma / len(units)
    return Calibration(
        temperature=temperature,
        ece=ece,
        pair_accuracy=accuracy,
        pair_accuracy_interval=(
            max(0.0, accuracy - math.hypot(accuracy - low, spread)),
            min(1.0, accuracy + math.hypot(high - accuracy, spread)),
        ),
        pairs=margins.size,
    )


def _calibration_gap(calibrated: Margins, units: PrivacyUnits, bins: int = 10) -> float:
    """Return Σ_b |Σ (right − confidence)| over equal confidence bins, each unit with weight 1."""
    confidence = np.exp(-np.logaddexp(0.0, -np.abs(calibrated)))
    right = (calibrated > 0) + 0.5 * (calibrated == 0)
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    counts = np.bincount(units.of_row)
    weights = 1 / counts[units.of_row]
    return float(np.abs(np.bincount(index, weights * (right - confidence), minlength=bins)).sum())
