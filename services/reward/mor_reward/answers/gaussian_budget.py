"""Differential privacy of noisy answers: Rényi composition of the Gaussian mechanism.

An answer with noise of standard deviation σ on a score that one unit of the training data changes by at most Δ is
(α, α·ρ) Rényi differentially private for each α > 1, with ρ = Δ² / (2σ²) (Mironov, 2017, proposition 7). Answers add
their ρ, even if later questions depend on earlier answers. The sum converts to (ε, δ) by theorem 21 of
Balle, Barthe, Gaboardi, Hsu and Sato (2020).
"""

from __future__ import annotations

import numpy as np

_ORDERS = 1 + np.logspace(-3, 6, 2000)
"""Rényi orders among which the best is taken. Any of them gives a valid ε."""


def cost(sensitivity: float, noise: float) -> float:
    """Return ρ of one answer; ``sensitivity`` and ``noise`` are in logits."""
    return sensitivity**2 / (2 * noise**2)


def epsilon(rho: float, delta: float) -> float:
    """Return ε of answers whose ρ sum to ``rho``."""
    if rho == 0:
        return 0.0
    spent = _ORDERS * rho + np.log1p(-1 / _ORDERS) - np.log(delta * _ORDERS) / (_ORDERS - 1)
    return float(max(0.0, spent.min()))


def largest_cost(most_epsilon: float, delta: float) -> float:
    """Return the largest sum of ρ whose ε is at most ``most_epsilon``."""
    low, high = 0.0, most_epsilon  # ε exceeds ρ for every δ that anyone uses; if it did not, the budget is smaller
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon(middle, delta) <= most_epsilon else (low, middle)
    return low
