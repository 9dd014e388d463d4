"""Optimal policy for a reward: the optimum of expected reward under a KL penalty, on sampled responses.

For responses y_1..y_n to one prompt, drawn from the reference policy, the optimum of E[R] − β·KL is

    π*(y_i) ∝ exp(R_i / β)                           (Korbak et al. 2022, arXiv 2206.11871, eq. 3)

on the sample, with KL(π* ‖ uniform over the sample) = Σ_i π*_i log(n·π*_i). Rewards of different arms have different
units, so arms are compared at equal KL, not at equal β. Overoptimisation of a proxy shows as a gold value that falls
while KL grows (Gao et al. 2023, arXiv 2210.10760).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from quality.group_scores import Rewards


@dataclass(frozen=True)
class Optimum:
    """Figures of an optimal policy, means over prompts."""

    beta: float
    kl: float
    """KL to the reference policy, nats per response."""
    proxy: float
    """The arm's own reward, in standard deviations over a prompt's samples above their mean."""
    gold: float
    """Gold value above that of the reference policy."""
    by_prompt: Float[ndarray, " prompts"]
    """Gold value of each prompt above the reference's."""


def tilt(rewards: Rewards, beta: float) -> Rewards:
    """Compute π* of each prompt."""
    scaled = (rewards - rewards.max(axis=1, keepdims=True)) / beta
    odds = np.exp(scaled)
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def divergence(weights: Rewards) -> Float[ndarray, " prompts"]:
    """Compute the KL to the reference on the sample, nats."""
    safe = np.where(weights > 0, weights, 1.0)
    return np.asarray((weights * np.log(safe * weights.shape[1])).sum(axis=1))


def optimum(rewards: Rewards, gold: Rewards, beta: float) -> Optimum:
    weights = tilt(rewards, beta)
    level, spread = rewards.mean(axis=1, keepdims=True), rewards.std(axis=1, keepdims=True)
    proxy = (rewards - level) / np.maximum(spread, 1e-12)
    gained = (weights * gold).sum(axis=1) - gold.mean(axis=1)
    return Optimum(
        beta,
        float(divergence(weights).mean()),
        float((weights * proxy).sum(axis=1).mean()),
        float(gained.mean()),
        gained,
    )


def penalty(rewards: Rewards, kl: float) -> float | None:
    """Find the β at which the optimum's mean KL is ``kl`` nats; None if even the sharpest choice stays below it."""
    scale = float(rewards.std(axis=1).mean()) or 1.0
    low, high = 1e-4 * scale, 1e4 * scale
    if divergence(tilt(rewards, low)).mean() < kl:
        return None
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        if divergence(tilt(rewards, middle)).mean() > kl:
            low = middle
        else:
            high = middle
    return high
