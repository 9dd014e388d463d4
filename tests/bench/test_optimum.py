"""KL-regularised optimum on samples, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from quality.optimum import divergence, optimum, penalty, tilt

RANDOM = np.random.default_rng(0)
REWARDS = RANDOM.normal(size=(6, 32))
GOLD = REWARDS + RANDOM.normal(size=(6, 32))


def test_no_other_distribution_has_a_higher_regularised_reward() -> None:
    beta, best = 0.7, tilt(REWARDS, 0.7)

    def objective(weights: np.ndarray) -> np.ndarray:
        return (weights * REWARDS).sum(axis=1) - beta * divergence(weights)

    for _ in range(50):
        other = best * np.exp(0.1 * RANDOM.normal(size=best.shape))
        assert (objective(best) > objective(other / other.sum(axis=1, keepdims=True))).all()


def test_the_optimum_hits_the_wanted_divergence_in_any_unit_of_reward() -> None:
    one, other = (optimum(rewards, GOLD, penalty(rewards, 0.8) or np.nan) for rewards in (REWARDS, 1000 * REWARDS - 5))
    assert one.kl == pytest.approx(0.8, abs=1e-3)
    assert other.gold == pytest.approx(one.gold)
    assert other.proxy == pytest.approx(one.proxy)
    assert one.gold > 0


def test_a_constant_reward_cannot_reach_a_divergence() -> None:
    assert penalty(np.ones((3, 8)), 0.5) is None
    assert penalty(REWARDS, 4.0) is None, "log 32 nats is the most that 32 samples allow"


def test_large_beta_changes_nothing_and_small_beta_takes_the_best() -> None:
    assert optimum(REWARDS, GOLD, 1e9).kl == pytest.approx(0, abs=1e-9)
    sharp = optimum(REWARDS, REWARDS, 1e-6)
    assert sharp.gold == pytest.approx((REWARDS.max(axis=1) - REWARDS.mean(axis=1)).mean())
