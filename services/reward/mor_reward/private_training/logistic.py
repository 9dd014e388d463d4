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

STEPS = 20
"""Noisy gradient steps. More follow the likelihood further, and each carries more noise."""
SCALE_SHARE = 0.05
"""Share of ε for the scale of the features where no public pairs tell it."""
_RATE, _WHITENED_RATE = 6.0, 120.0
"""Step size where features have a length near 1: below 2 over the largest curvature, which is ¼ if all features point
one way, and far less once they are whitened and their gradients clipped."""
_CLIP, _WHITENED_CLIP = 0.5, 0.1
"""Bounds of a unit's gradient, which is near ½ at the start where features have a length near 1. The lower one makes
nearly all of one length, and what is left of the noise is smaller for it, at small ε most of all."""
_SCALES = 2.0 ** np.arange(-30, 30.5, 0.5)
"""Candidates of the scale of the features."""
_RIDGE = 0.001
"""Share of the largest variance that is added to all in whitening, so that directions without content stay small."""


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
    public: Float[np.ndarray, "public dim"] | None = None,
    steps: int = STEPS,
) -> LinearFit:
    """Fit −log σ(margin) with (``epsilon``, ``delta``)-differential privacy for each unit.

    A unit's gradient is the mean over its pairs, clipped; the fit is the mean of the iterates of the second half,
    which costs no privacy. ``public``: features of public pairs. They whiten the features, so that few steps reach all
    directions, and the scale costs no privacy.
    """
    if public is None:
        basis = np.diag(1 / _block_scales(pairs, units, SCALE_SHARE * epsilon, noise))
        rate, bound, budget = _RATE, _CLIP, (1 - SCALE_SHARE) * epsilon
    else:
        basis, rate, bound, budget = whitening(public), _WHITENED_RATE, _WHITENED_CLIP, epsilon
    features = pairs.features @ basis
    sigma = noise_multiplier(budget, delta, 1.0, steps)
    weights, total = np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for step in range(steps):
        wrong = _sigmoid(-(pairs.margins + features @ weights))
        gradients = clipped(units.means(-wrong[:, None] * features), bound)
        weights = weights - rate * noise.add(gradients.sum(0), sigma * bound) / len(units)
        if step >= steps // 2:
            total += weights
    return LinearFit(basis @ (total / (steps - steps // 2)), sigma, steps)


def whitening(public: Float[np.ndarray, "public dim"]) -> Float[np.ndarray, "dim dim"]:
    """Return the matrix that gives public features nearly equal variance in all directions and a median length of 1."""
    variances, directions = np.linalg.eigh(public.T @ public / len(public))
    matrix = directions / np.sqrt(variances + _RIDGE * variances[-1] + np.finfo(float).tiny)
    scaled: Float[np.ndarray, "dim dim"] = matrix / max(
        float(np.median(np.linalg.norm(public @ matrix, axis=1))), np.finfo(float).tiny
    )
    return scaled


def _block_scales(
    pairs: LinearPairs, units: PrivacyUnits, epsilon: float, noise: PrivacyNoise
) -> Float[np.ndarray, " dim"]:
    parts = np.split(pairs.features, np.cumsum(pairs.blocks)[:-1], 1)
    return np.concatenate(
        [np.full(part.shape[1], private_scale(part, units, epsilon / len(parts), noise)) for part in parts]
    )


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
