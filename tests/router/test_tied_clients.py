"""A client that is mostly tied: ties are evidence of nothing, for its scale, its slope and its level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mor_router.mathematics.fusion import Weighted
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights, fuse
from mor_router.mathematics.mixture import Mixture, fit_mixture
from mor_router.mathematics.standardise import Standardiser, fit_standardiser
from numpy import ndarray

_CLIENTS = ("first", "second", "tied")
_PAIRS = 120
_SHARES = (0.3, 0.45, 0.49, 0.6, 0.9, 0.99, 1.0)
numbers = st.integers(-640, 640).map(lambda n: n / 64)


def planted(share: float, noise: float = 0.0) -> tuple[ndarray, ndarray, ndarray]:
    """Make anchors of two clients that rank well, and of one that gives a ``share`` of the pairs one score for both.

    Its scores say more about the prompt than about the response. ``noise``: size of the difference in its ties.
    """
    random = np.random.default_rng(0)
    inputs = random.normal(size=(_PAIRS, 16))
    quality = np.sort(random.normal(size=(_PAIRS, 2)), axis=1)[:, ::-1]
    scores = quality[:, None] + 0.7 * random.normal(size=(_PAIRS, 3, 2))
    level = 4 * random.normal(size=(_PAIRS, 1))
    tied = random.permutation(_PAIRS) < round(share * _PAIRS)
    scores[:, 2] = np.where(tied[:, None], noise * random.normal(size=(_PAIRS, 2)), scores[:, 2]) + level
    return inputs, scores, level[:, 0]


def reward(mixture: Mixture, place: ndarray, raw: ndarray) -> FusedGroup:
    """Fuse the scores of one group as the router does."""
    found = mixture.evaluate(place[None], _CLIENTS)
    weights = ObjectiveWeights(
        1.0,
        dict(zip(_CLIENTS, found.weights[0].tolist(), strict=True)),
        dict(zip(_CLIENTS, found.slopes[0].tolist(), strict=True)),
    )
    fused = fuse(
        dict(zip(_CLIENTS, raw.tolist(), strict=True)),
        objective_weights=[weights],
        standardisers=[dict(zip(_CLIENTS, mixture.standardisers, strict=True))],
        fusion=Weighted(),
        quorum=0.5,
    )
    assert isinstance(fused, FusedGroup)
    return fused


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-3])
@pytest.mark.parametrize("share", _SHARES)
def test_a_tied_client_is_amplified_no_more_than_the_others(share: float, noise: float) -> None:
    inputs, scores, _ = planted(share, noise)
    mixture, _ = fit_mixture(_CLIENTS, inputs, scores, entropy_floor=0.05)
    gain = mixture.slopes(inputs).mean(axis=0) / [unit.spread for unit in mixture.standardisers]
    if share * noise == 0 or share < 0.9:  # with hardly a true difference, the noise is all that can be measured
        assert gain[2] <= 2.5 * gain[:2].max()


@pytest.mark.parametrize("noise", [0.0, 1e-7])
@pytest.mark.parametrize("share", _SHARES)
def test_a_tied_client_reads_no_louder_than_the_others_in_evaluations(share: float, noise: float) -> None:
    """An evaluation has one response to a prompt, so that levels are all it shows."""
    inputs, scores, level = planted(share, noise)
    mixture, _ = fit_mixture(_CLIENTS, inputs, scores, entropy_floor=0.05)
    read, slopes = [], mixture.slopes(inputs)
    for place, at in zip(inputs, level, strict=True):
        fused = reward(mixture, place, np.array([[0.5], [0.5], [at - 30]]))
        read.append(fused.calibrated[2, 0])
    assert np.abs(read).max() <= 5 * slopes[:, 2].max() + 1e-9
    assert np.abs(read).max() < 20


@pytest.mark.parametrize("share", [0.9, 0.99, 1.0])
def test_a_few_differences_among_ties_change_little_of_a_groups_rewards(share: float) -> None:
    inputs, scores, _ = planted(share)
    mixture, _ = fit_mixture(_CLIENTS, inputs, scores, entropy_floor=0.05)
    raw = np.array([[0.0, 1.0, 2.0, 3.0]] * 2 + [[9.0, -9.0, -9.0, -9.0]])
    with_tied = reward(mixture, inputs[0], raw).rewards
    assert (np.diff(with_tied) > 0).all()  # as the two say that know something


def test_a_client_that_knows_its_own_domain_keeps_its_say_although_it_ties_elsewhere() -> None:
    _, scores, _ = planted(0.8)
    standardiser = fit_standardiser(scores[:, 2])
    assert standardiser.limit == pytest.approx(2 * standardiser.spread)


@given(arrays(float, (10, 2), elements=numbers), st.integers(0, 200), numbers)
def test_ties_never_change_the_spread(pairs: ndarray, ties: int, level: float) -> None:
    plain = fit_standardiser(pairs)
    assert fit_standardiser(np.concatenate([pairs, np.full((ties, 2), level)])).spread == plain.spread


@given(arrays(float, (30, 2), elements=numbers), arrays(float, (5, 6), elements=st.floats(-1e9, 1e9)))
def test_a_standardised_score_is_bounded_whatever_the_anchors_were(anchors: ndarray, groups: ndarray) -> None:
    served = fit_standardiser(anchors)(groups)
    assert np.abs(served).max() <= 7 + 1e-6


def test_a_standardiser_that_an_earlier_version_stored_is_bounded_too() -> None:
    stored = Standardiser(spread=0.1, limit=0.2, centre=0.0, low=-2.0, high=2.0)
    assert np.abs(stored(np.array([[-1e3], [1e3]]))).max() <= 5


def test_a_client_that_only_ties_says_nothing() -> None:
    levels = np.arange(20.0)
    served = fit_standardiser(np.stack([levels, levels], axis=1))(np.array([[3.0, 8.0], [100.0, -100.0]]))
    np.testing.assert_array_equal(served, 0)
