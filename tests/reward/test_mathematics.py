"""Loss, calibration and splits against independent references."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mor_core.errors import Invalid
from mor_reward import calibration
from mor_reward.bradley_terry import bradley_terry_loss
from mor_reward.splits import split_rows
from mor_reward.train_config import TrainConfig, learning_rate


def test_loss_and_gradient_equal_the_plain_formula() -> None:
    chosen = torch.tensor([1.5, -0.2, 0.3], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64, requires_grad=True)
    loss = bradley_terry_loss(chosen, rejected, centring=0.1)
    loss.backward()

    pairs = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
    plain = sum(-math.log(1 / (1 + math.exp(b - a))) + 0.1 * (a + b) ** 2 for a, b in pairs) / 3
    assert loss.item() == pytest.approx(plain, rel=1e-12)
    slopes = [(-1 / (1 + math.exp(a - b)) + 0.2 * (a + b)) / 3 for a, b in pairs]
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx(slopes, rel=1e-12)


def test_loss_stays_finite_for_large_margins() -> None:
    loss = bradley_terry_loss(torch.tensor([-1e4]), torch.tensor([1e4]))
    assert loss.item() == pytest.approx(2e4)


@pytest.mark.parametrize("scale", [0.25, 1.0, 7.0])
def test_temperature_recovers_the_scale_of_the_scores(scale: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    labels = np.where(rng.random(20_000) < 1 / (1 + np.exp(-logits)), 1, -1)
    assert calibration.fit_temperature(labels * logits * scale) == pytest.approx(scale, rel=0.05)


def test_temperature_stays_finite_when_every_pair_is_right() -> None:
    temperature = calibration.fit_temperature(np.array([1.0, 2.0, 0.5, 3.0]))
    assert 0 < temperature < 2


def test_scores_that_contradict_the_labels_get_the_largest_temperature() -> None:
    assert calibration.fit_temperature(np.array([-1.0, -2.0, 0.1])) > 1e3


@pytest.mark.parametrize("bad", [[], [math.nan]])
def test_a_temperature_needs_finite_margins(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite margins"):
        calibration.fit_temperature(np.array(bad))


def test_calibration_error_of_known_bins() -> None:
    confident = math.log(0.9 / 0.1)
    margins = np.array([confident] * 6 + [-confident] * 4)
    assert calibration.expected_calibration_error(margins) == pytest.approx(0.9 - 0.6)


def test_calibrated_logits_have_a_small_calibration_error() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, 50_000)
    margins = np.where(rng.random(50_000) < 1 / (1 + np.exp(-logits)), logits, -logits)
    assert calibration.expected_calibration_error(margins) < 0.01
    assert calibration.expected_calibration_error(4 * margins) > 0.05


def test_a_margin_of_zero_is_half_right() -> None:
    found = calibration.report(np.array([0.0, 0.0]), 1.0)
    assert found.accuracy == 0.5
    assert found.nll == pytest.approx(math.log(2))


@given(
    rows=st.lists(st.frozensets(st.integers(0, 40), min_size=1, max_size=2), min_size=30, max_size=60),
    seed=st.integers(0, 5),
)
def test_rows_that_share_a_picture_stay_together(rows: list[frozenset[int]], seed: int) -> None:
    try:
        splits = split_rows(rows, 0.3, seed)
    except Invalid:
        return
    parts = (splits.train, splits.calibration, splits.report)
    assert sorted(row for part in parts for row in part) == list(range(len(rows)))
    pictures = [{picture for row in part for picture in rows[row]} for part in parts]
    assert not (pictures[0] & pictures[1] or pictures[0] & pictures[2] or pictures[1] & pictures[2])
    assert split_rows(rows, 0.3, seed) == splits


def test_the_seed_decides_the_split() -> None:
    rows = [frozenset({number}) for number in range(100)]
    assert split_rows(rows, 0.2, 0).report != split_rows(rows, 0.2, 1).report
    assert len(split_rows(rows, 0.2, 0).report) == 10


def test_too_few_pictures_are_an_error_with_the_cure() -> None:
    with pytest.raises(Invalid, match=r"too few distinct pictures .* --heldout-fraction"):
        split_rows([frozenset({1}), frozenset({1}), frozenset({2})], 0.2, 0)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, TrainConfig(lr=1.0, warmup_ratio=0.1)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
