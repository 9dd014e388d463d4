"""Accuracy over ε in the privacy benchmark, on features with a known answer."""

from __future__ import annotations

import numpy as np
from mor_reward.private_training.linear_part import LinearPairs
from mor_reward.private_training.privacy_units import PrivacyUnits
from mor_reward.splits import Splits
from privacy.accuracy import EPSILONS, over_epsilon


def test_accuracy_rises_with_epsilon_from_that_of_the_start() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1200, 6))
    features *= np.sign(features[:, :1])  # the first coordinate tells every label, and the start ignores it
    pairs = LinearPairs(features, rng.normal(size=1200) * 0.01, (6,))
    units = PrivacyUnits(tuple((2 * number, 2 * number + 1) for number in range(600)))
    splits = Splits(tuple(range(1000)), tuple(range(1000, 1100)), tuple(range(1100, 1200)))
    found = over_epsilon(pairs, features, units, splits, draws=2)
    assert found["units"] == 500
    assert 0.35 < found["start"] < 0.65
    assert all(found[f"{epsilon:g}"]["mean"] > 0.85 for epsilon in EPSILONS)
