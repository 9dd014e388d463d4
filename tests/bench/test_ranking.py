"""Accuracies, their intervals, and draws of anchors."""

from __future__ import annotations

import numpy as np
import pytest
from quality.arms import MixtureOfRewards, UniformRaw
from quality.group_scores import AnchorPairs, agreement
from quality.ranking import draw, judge, standings

from tests.bench.synthetic import anchors, groups


def coins(share: float, draws: int = 4, pairs: int = 1000, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((draws, pairs)) < share).astype(float)


def test_an_interval_covers_the_truth_and_narrows_with_more_pictures() -> None:
    def interval(pairs: int) -> tuple[float, float, float]:
        results = {"mor": coins(0.8, pairs=pairs), "other": coins(0.7, pairs=pairs, seed=1)}
        found = standings(results, "mor", ["a", "b"] * (pairs // 2), range(pairs))["other"].behind
        return found.mean, found.low, found.high

    _, low, high = interval(400)
    mean, narrow_low, narrow_high = interval(6400)
    assert low < 10 < high
    assert narrow_low < 10 < narrow_high
    assert abs(mean - 10) < 2
    assert narrow_high - narrow_low < 0.5 * (high - low)


def test_pairs_of_one_picture_are_resampled_together() -> None:
    one = {"mor": np.repeat(coins(0.8, draws=1, pairs=100), 10, axis=1), "other": np.full((1, 1000), 0.5)}
    domains = ["a"] * 1000
    together = standings(one, "mor", domains, np.repeat(np.arange(100), 10).tolist())["other"].behind
    apart = standings(one, "mor", domains, range(1000))["other"].behind
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_an_arm_is_no_distance_from_itself_and_the_worst_domain_is_found() -> None:
    right = np.tile([1.0, 0.0, 1.0, 1.0], (3, 50))
    found = standings({"mor": right}, "mor", ["a", "b", "c", "c"] * 50, range(200))["mor"]
    assert (found.behind.low, found.behind.mean, found.behind.high) == (0, 0, 0)
    assert found.domains == {"a": 100, "b": 0, "c": 100}
    assert found.worst == 0
    assert found.accuracy.mean == 75


def test_a_draw_has_the_wanted_share_of_each_domain_and_no_anchor_twice() -> None:
    pool = anchors(400)
    taken = draw(pool, {"a": 0.75, "b": 0.25}, 64, seed=5)
    assert len(taken.pairs) == 64
    assert taken.pairs.domains.count("a") == 48
    assert len(np.unique(taken.pairs.scores[:, 0, 0])) == 64
    other = draw(pool, {"a": 0.75, "b": 0.25}, 64, seed=6)
    assert not np.array_equal(taken.pairs.scores, other.pairs.scores)
    with pytest.raises(ValueError, match="larger sample"):
        draw(pool, {"a": 1.0}, 201, seed=0)


def test_judging_fits_on_each_draw() -> None:
    draws: list[AnchorPairs] = [anchors(seed=seed) for seed in (0, 1)]
    held_out = groups(200, seed=9)
    right = judge(MixtureOfRewards(), draws, held_out)
    assert right.shape == (2, 200)
    assert right.mean() > 0.8
    np.testing.assert_array_equal(judge(UniformRaw(), draws, held_out)[0], agreement(held_out.scores.mean(axis=1)))
