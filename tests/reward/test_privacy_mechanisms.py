"""Mechanisms of private training: what one unit can change, how much noise hides it, and the accounting of both."""

from __future__ import annotations

import itertools
import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mor_core.wire import Message
from mor_reward.backbones import Example, Picture
from mor_reward.preference_trainer import PreferencePair
from mor_reward.private_training import accounting
from mor_reward.private_training.clipping import clipped
from mor_reward.private_training.linear_part import LinearPairs
from mor_reward.private_training.logistic import private_fit
from mor_reward.private_training.privacy_noise import PrivacyNoise
from mor_reward.private_training.privacy_units import PrivacyUnits, privacy_units
from mor_reward.private_training.released_figures import private_calibration, private_temperature

numbers = st.floats(allow_nan=True, allow_infinity=True)


def repeatable() -> PrivacyNoise:
    """Return noise with a seed: equal for two data sets, and the same in each run where a test looks at its size."""
    return PrivacyNoise(Random(7).randbytes)


def pair(*pictures: str, person: str | None = None, question: str = "What?") -> PreferencePair:
    shown = tuple(Picture(name, b"") for name in pictures)
    messages = (Message(role="user", content=question),)
    return PreferencePair(Example(messages, shown, "yes"), Example(messages, shown, "no"), question, person)


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=5), st.floats(1e-3, 1e3))
def test_no_gradient_is_longer_than_the_bound(rows: list[list[float]], bound: float) -> None:
    found = clipped(np.array(rows), bound)
    assert np.isfinite(found).all()
    assert (np.linalg.norm(found, axis=1) <= bound * (1 + 1e-9)).all()


@given(st.integers(0, 19), st.floats(-1e6, 1e6))
def test_one_unit_changes_a_step_by_at_most_its_clipped_gradient(unit: int, value: float) -> None:
    """Compare one step on two data sets that differ in one unit of three pairs, under equal noise."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 4))
    units = PrivacyUnits(tuple(tuple(range(3 * number, 3 * number + 3)) for number in range(20)))
    changed = features.copy()
    changed[3 * unit : 3 * unit + 3] = value

    def step(data: np.ndarray) -> np.ndarray:
        pairs = LinearPairs(data, np.zeros(60), (4,))
        return private_fit(pairs, units, 3.0, 1e-3, repeatable(), public=np.eye(4), steps=1).change

    rate, clip = 40.0, 0.5
    assert np.linalg.norm(step(features) - step(changed)) <= 2 * rate * clip / len(units) * (1 + 1e-4)


@given(st.lists(st.lists(st.floats(-20, 20), min_size=1, max_size=4), min_size=2, max_size=8))
def test_a_unit_that_is_left_out_changes_the_released_sums_by_at_most_one(margins: list[list[float]]) -> None:
    """The noise of the figures and the choice of the temperature rest on it."""

    def sums(units: list[list[float]]) -> np.ndarray:
        bounds = np.cumsum([0, *map(len, units)])
        divided = PrivacyUnits(tuple(tuple(range(low, high)) for low, high in itertools.pairwise(bounds)))
        found = np.concatenate(units)
        figures = private_calibration(found, 1.0, divided, epsilon=1e9, delta=0.5, noise=repeatable())
        return np.array([figures.pair_accuracy, figures.ece]) * len(units)

    assert (np.abs(sums(margins) - sums(margins[1:])) <= 1 + 1e-3).all()


def test_whitened_features_reach_weak_directions_in_few_steps() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2000, 8)) * [30, 3, 3, 3, 3, 3, 3, 3]
    labels = np.sign(features[:, 1] + 0.5 * rng.normal(size=2000))
    pairs = LinearPairs(features * labels[:, None], np.zeros(2000), (8,))
    units = PrivacyUnits(tuple((number,) for number in range(2000)))
    fits = [
        private_fit(pairs, units, 3.0, 1e-4, repeatable(), public=public).change for public in (None, features[::2])
    ]
    plain, whitened = (float((pairs.features @ change > 0).mean()) for change in fits)
    assert whitened > 0.9
    assert whitened > plain


def test_the_grid_of_released_numbers_hides_low_bits_and_the_noise_has_its_size() -> None:
    noise = repeatable()
    values = noise.add(np.full(40_000, 1 / 3), 0.5)
    grid = 0.5 * 2.0**-20
    assert np.array_equal(values, np.round(values / grid) * grid)
    assert values.mean() == pytest.approx(1 / 3, abs=6 * 0.5 / 200)
    assert values.std() == pytest.approx(0.5, rel=6 / math.sqrt(2 * 40_000))
    assert np.mean(np.abs(values - 1 / 3) > 1.0) == pytest.approx(0.0455, abs=0.007)


def test_noise_without_a_seed_is_new_each_time() -> None:
    assert not np.array_equal(PrivacyNoise().gaussian(4), PrivacyNoise().gaussian(4))


def test_units_are_sampled_independently() -> None:
    noise = repeatable()
    draws = [noise.sampled(50, 0.2) for _ in range(2000)]
    sizes = np.array([len(draw) for draw in draws])
    assert sizes.mean() == pytest.approx(10, abs=0.4)
    assert sizes.var() == pytest.approx(8, rel=0.25)
    assert noise.sampled(5, 1.0) == [0, 1, 2, 3, 4]


def test_pairs_that_share_a_picture_or_person_are_one_unit() -> None:
    pairs = [pair("a"), pair("a"), pair("b"), pair("b", "c"), pair("c"), pair("d")]
    assert privacy_units(pairs, "picture").rows == ((0, 1), (2, 3, 4), (5,))
    assert len(privacy_units(pairs, "pair")) == 6
    persons = [pair("a", person="x"), pair("b", person="x"), pair("c", person="y")]
    assert privacy_units(persons, "person").rows == ((0, 1), (2,))


@given(st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1, max_size=3), min_size=1, max_size=12))
def test_every_pair_is_in_one_unit_and_no_picture_in_two(shown: list[set[str]]) -> None:
    units = privacy_units([pair(*sorted(pictures)) for pictures in shown], "picture")
    assert sorted(itertools.chain(*units.rows)) == list(range(len(shown)))
    pictures = [set().union(*(shown[row] for row in rows)) for rows in units.rows]
    assert all(not one & other for one, other in itertools.combinations(pictures, 2))


@pytest.mark.parametrize("epsilon", [0.5, 1, 3, 8])
@pytest.mark.parametrize("delta", [2e-3, 1e-5])
def test_the_noise_of_the_budget_spends_the_budget(epsilon: float, delta: float) -> None:
    mu = accounting.gaussian_mu(epsilon, delta)
    # The definition: δ = ∫ max(0, p − e^ε q) of two normal densities at distance μ.
    x = np.linspace(-40, 40, 400_001)
    density = np.exp(-((x - mu) ** 2) / 2) - math.exp(epsilon) * np.exp(-(x**2) / 2)
    assert np.maximum(density, 0).sum() * (x[1] - x[0]) / math.sqrt(2 * math.pi) == pytest.approx(delta, rel=1e-3)
    noise = accounting.noise_multiplier(epsilon, delta, 1.0, 60)
    assert accounting.spent_epsilon(noise, delta, 1.0, 60) == pytest.approx(epsilon, rel=1e-6)


def test_the_smallest_likely_delta_stays_finite() -> None:
    assert accounting.gaussian_delta(0.01, 50) >= 0
    assert accounting.gaussian_mu(0.01, 1e-12) > 0
    for units in (2, 10, 480, 99_999):
        assert accounting.default_delta(units) <= 0.1 / units


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # of Opacus' numerical accountant
def test_opacus_agrees_with_the_exact_composition_and_with_its_numerical_accountant() -> None:
    opacus = pytest.importorskip("opacus.accountants")
    exact = accounting.noise_multiplier(3, 1e-4, 1.0, 60)
    assert 3 <= accounting.spent_epsilon(exact, 1e-4, 1 - 1e-9, 60) <= 3 * 1.15
    sampled = accounting.noise_multiplier(3, 1e-4, 0.05, 160)
    assert accounting.spent_epsilon(sampled, 1e-4, 0.05, 160) == pytest.approx(3, rel=0.02)
    numerical = opacus.PRVAccountant()
    for noise, rate, steps, lowest in ((exact, 1.0, 60, 0.98), (sampled, 0.05, 160, 0.8)):
        numerical.history = [(noise, rate, steps)]
        assert 3 * lowest <= numerical.get_epsilon(1e-4) <= 3 * 1.02


def test_a_second_accountant_agrees() -> None:
    dp_accounting = pytest.importorskip("dp_accounting")
    pytest.importorskip("opacus")
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    for epsilon in (1.0, 3.0, 8.0):
        noise = accounting.noise_multiplier(epsilon, 1e-4, 1.0, 60)
        exact = PLDAccountant().compose(dp_accounting.GaussianDpEvent(noise), 60)
        assert exact.get_epsilon(1e-4) == pytest.approx(epsilon, rel=0.02)
        noise = accounting.noise_multiplier(epsilon, 1e-4, 0.05, 160)
        step = dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(noise))
        assert RdpAccountant().compose(step, 160).get_epsilon(1e-4) == pytest.approx(epsilon, rel=0.03)


def test_released_figures_are_near_the_exact_ones_and_never_equal() -> None:
    rng = np.random.default_rng(3)
    units = PrivacyUnits(tuple((2 * number, 2 * number + 1) for number in range(500)))
    truth = rng.normal(1.0, 2.0, 1000) * 2.0
    right = rng.random(1000) < 1 / (1 + np.exp(-truth))
    found = np.where(right, np.abs(truth), -np.abs(truth)) * 4.0
    noise = repeatable()
    temperature = private_temperature(found, units, 3.0, noise)
    assert 1.5 < temperature < 12
    figures = private_calibration(found, temperature, units, epsilon=3.0, delta=1e-4, noise=noise)
    exact = float((found > 0).mean())
    assert figures.pair_accuracy == pytest.approx(exact, abs=0.05)
    assert figures.pair_accuracy != exact
    assert figures.pair_accuracy_interval[0] < exact < figures.pair_accuracy_interval[1]
