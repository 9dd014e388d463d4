"""Variants of MoR, on scores in which the structure that each looks for is planted."""

from __future__ import annotations

import numpy as np
import pytest
from quality.arms import MixtureOfRewards
from quality.arms.variants import variants
from quality.group_scores import AnchorPairs, GroupScores, ResponseFeatures, agreement


def planted(count: int, seed: int, *, biased: bool = False) -> GroupScores:
    """Make pairs that two clients know and four do not.

    ``biased``: all know them, and all but the first prefer the longer response, which is as often the worse one.
    """
    random = np.random.default_rng(seed)
    truth = np.sort(random.normal(size=(count, 2)), axis=1)[:, ::-1]
    skill = np.ones(6) if biased else np.array([1.0, 1.0, 0.1, 0.1, 0.1, 0.1])
    scores = skill[:, None] * truth[:, None] + 0.8 * random.normal(size=(count, 6, 2))
    words = random.integers(3, 5, size=(count, 2))
    if biased:
        scores[:, 1:] += 4.0 * (words - 3)[:, None]
    embeddings = random.normal(size=(count, 2, 4)) / 10
    inputs = random.normal(size=(count, 3))
    return GroupScores(inputs, scores, ("chart/bar",) * count, answers=ResponseFeatures(embeddings, words))


@pytest.mark.parametrize("arm", variants(planted(200, 9)), ids=lambda arm: arm.title)
def test_a_variant_ranks_about_as_well_as_mor_where_nothing_is_planted(arm) -> None:  # type: ignore[no-untyped-def]
    drawn, held_out = AnchorPairs(planted(96, 1)), planted(600, 2)
    levels = [agreement(each.fit(drawn)(held_out)).mean() for each in (arm, MixtureOfRewards())]
    assert levels[0] > levels[1] - 0.05, levels


def test_weights_by_length_find_clients_that_prefer_long_responses() -> None:
    drawn, held_out = AnchorPairs(planted(128, 1, biased=True)), planted(600, 2, biased=True)
    by_length = next(arm for arm in variants(planted(50, 9)) if "length" in arm.title)
    levels = [agreement(arm.fit(drawn)(held_out)).mean() for arm in (by_length, MixtureOfRewards())]
    assert levels[0] > levels[1] + 0.03, levels


def test_the_common_factor_of_unlabelled_groups_ranks_better_than_the_mean() -> None:
    few, held_out = AnchorPairs(planted(8, 1)), planted(600, 2)
    common = next(arm for arm in variants(planted(400, 9)) if "factor of unlabelled" in arm.title)
    level = agreement(common.fit(few)(held_out)).mean()
    assert level > agreement(held_out.scores.mean(axis=1)).mean(), level
