"""Private logistic regression of preferences on fixed features, by gradients of all units with Gaussian noise.

Each step takes every unit, so that the steps compose exactly, and no machinery for gradients of single examples is
needed: the gradient of a pair is its feature vector times a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mor_reward.private_training.accounting import noise_multiplier
from mor_reward.private_training.clipping import clipped
from mor_reward.private_training.linear_part import LinearPairs
from mor_reward.private_training.privacy_noise import PrivacyNoise
from mor_reward.private_training.privacy_units import PrivacyUnits

STEPS = 60
"""Noisy gradient steps. More follow the likelihood further and each carries more noise; 40 to 100 differ little."""
SCALE_SHARE = 0.05
"""Share of ε for the scale of the features."""
_RATE = 2.0
"""Step size where features have a length near 1; the curvature of the logistic loss is at most ¼ there."""
_CLIP = 0.5
"""Bound of a unit's gradient, which is near ½ at the start where features have a length near 1."""
_SCALES = 2.0 ** np.arange(-30, 30.5, 0.5)
"""Candidates of the scale of the features."""


@dataclass(frozen=True)
class LinearFit:
    """Result of a private fit."""

    change: Float[np.ndarray, " dim"]
    """Change of the linear part's parameters."""
    noise: float
    """Standard deviation of a step's noise, in units of the clipping bound."""
    steps: int


def private_fit(
    pairs: LinearPairs,
    units: PrivacyUnits,
    epsilon: float,
    delta: float,
    noise: PrivacyNoise,
    *,
    steps: int = STEPS,
) -> LinearFit:
    """Fit −log σ(margin) with (``epsilon``, ``delta``)-differential privacy for each unit.

    A unit's gradient is the mean over its pairs, clipped; the fit is the mean of the iterates of the second half,
    which costs no privacy.
    """
    scale = np.concatenate(
        [
            np.full(size, private_scale(block, units, SCALE_SHARE * epsilon / len(pairs.blocks), noise))
            for size, block in zip(pairs.blocks, np.split(pairs.features, np.cumsum(pairs.blocks)[:-1], 1), strict=True)
        ]
    )
    features = pairs.features / scale
    sigma = noise_multiplier((1 - SCALE_SHARE) * epsilon, delta, 1.0, steps)
    weights, total = np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for step in range(steps):
        wrong = _sigmoid(-(pairs.margins + features @ weights))
        gradients = clipped(units.means(-wrong[:, None] * features), _CLIP)
        weights = weights - _RATE * noise.add(gradients.sum(0), sigma * _CLIP) / len(units)
        if step >= steps // 2:
            total += weights
    return LinearFit(total / (steps - steps // 2) / scale, sigma, steps)


def private_scale(
    features: Float[np.ndarray, "pairs dim"], units: PrivacyUnits, epsilon: float, noise: PrivacyNoise
) -> float:
    """Choose a scale near the median length of the features, by the exponential mechanism (McSherry and Talwar 2007).

    The utility of a candidate is how evenly it divides the units, which one unit changes by at most 1.
    """
    lengths = np.sort(units.means(np.linalg.norm(features, axis=1)))
    below = np.searchsorted(lengths, _SCALES)
    utility = -np.abs(below - len(units) / 2)
    return float(_SCALES[noise.choose([math.exp(epsilon / 2 * (value - utility.max())) for value in utility])])


def _sigmoid(x: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    probability: Float[np.ndarray, " pairs"] = np.exp(-np.logaddexp(0.0, -x))
    return probability
