"""Adversarial clients on the synthetic population."""

from __future__ import annotations

import numpy as np
import pytest
from quality.arms import MixtureOfRewards
from quality.attacks import SCENARIOS, Scenario
from quality.group_scores import AnchorPairs, GroupScores, agreement

from tests.bench.synthetic import anchors, groups

LIVE = groups(800, seed=1)


def accuracy(scenario_anchors: AnchorPairs, live: GroupScores) -> float:
    return float(agreement(MixtureOfRewards().fit(scenario_anchors)(live)).mean())


CLEAN = accuracy(anchors(), LIVE)


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if not one.sleeper], ids=lambda one: one.title)
def test_an_adversary_that_attacks_on_the_anchors_costs_little(scenario: Scenario) -> None:
    scenario_anchors, live = scenario.joined(anchors(), LIVE, model=0, seed=0)
    assert live.scores.shape[1] == LIVE.scores.shape[1] + scenario.adversaries
    assert accuracy(scenario_anchors, live) > CLEAN - 0.03


def test_a_sleeper_looks_honest_on_the_anchors_only() -> None:
    sleeper = next(one for one in SCENARIOS if one.sleeper)
    scenario_anchors, live = sleeper.joined(anchors(), LIVE, model=0, seed=0)
    np.testing.assert_array_equal(scenario_anchors.pairs.scores[:, -1], scenario_anchors.pairs.scores[:, 0])
    np.testing.assert_array_equal(live.scores[:, -1], -live.scores[:, 0])


def test_a_client_that_turns_leaves_the_others_and_the_original_alone() -> None:
    before = LIVE.scores.copy()
    scenario_anchors, live = SCENARIOS[2].turned(anchors(), LIVE, client=1, seed=0)
    np.testing.assert_array_equal(live.scores[:, 1], -before[:, 1])
    np.testing.assert_array_equal(np.delete(live.scores, 1, axis=1), np.delete(before, 1, axis=1))
    np.testing.assert_array_equal(scenario_anchors.pairs.scores[:, 1], -anchors().pairs.scores[:, 1])
    np.testing.assert_array_equal(LIVE.scores, before)
