"""Properties of standardisation, gate and fusion that hold for any scores of any client."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mor_router.mathematics import gate
from mor_router.mathematics.fusion import (
    FusionChoice,
    Gdpo,
    GroupDeviations,
    MeanMinusVariance,
    Median,
    Uniform,
    Weighted,
    WorstClient,
)
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights, fuse
from mor_router.mathematics.quorum import NoQuorum
from mor_router.mathematics.standardise import Standardiser, fit_standardiser, standardise_group
from mor_router.objectives.similarity import objective_shares
from numpy import ndarray

IDENTITY = Standardiser(1.0, 1e9, 0.0, -1e9, 1e9)
STRATEGIES = [Weighted(), Uniform(), Median(), WorstClient(), MeanMinusVariance(penalty=0.5), Gdpo(floor=0.1)]

# Multiples of 1/64 keep sums exact, so that equalities are equalities.
numbers = st.integers(-640, 640).map(lambda n: n / 64)


@st.composite
def groups(draw: st.DrawFn) -> GroupDeviations:
    clients, group = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    calibrated = draw(arrays(float, (clients, group), elements=numbers))
    weights = np.array(draw(st.lists(st.integers(1, 100), min_size=clients, max_size=clients)), dtype=float)
    return GroupDeviations(calibrated, weights / weights.sum())


@given(groups(), st.sampled_from(STRATEGIES))
def test_fusion_does_not_depend_on_the_order_of_clients_or_responses(
    group: GroupDeviations, fusion: FusionChoice
) -> None:
    generator = np.random.default_rng(0)
    clients = generator.permutation(len(group.weights))
    responses = generator.permutation(group.calibrated.shape[1])
    moved = GroupDeviations(group.calibrated[clients][:, responses], group.weights[clients])
    np.testing.assert_allclose(fusion(moved), fusion(group)[responses], atol=1e-9)


@given(groups(), st.sampled_from([Weighted(), Uniform(), Median(), WorstClient(), Gdpo()]))
def test_a_response_that_every_client_scores_at_least_as_high_is_rewarded_at_least_as_much(
    group: GroupDeviations, fusion: FusionChoice
) -> None:
    rewards = fusion(group)
    better = (group.calibrated[:, :, None] >= group.calibrated[:, None, :]).all(axis=0)
    assert (rewards[:, None] >= rewards[None, :] - 1e-9)[better].all()


@given(st.integers(1, 5), st.integers(1, 8), numbers, st.sampled_from(STRATEGIES))
def test_an_indifferent_group_gets_equal_rewards(clients: int, group: int, score: float, fusion: FusionChoice) -> None:
    group = GroupDeviations(np.full((clients, group), score), np.full(clients, 1 / clients))
    assert np.ptp(fusion(group)) < 1e-12


def test_strategies_by_hand() -> None:
    group = GroupDeviations(np.array([[0.0, 2.0], [1.0, -1.0], [4.0, 0.0]]), np.array([0.5, 0.25, 0.25]))
    np.testing.assert_allclose(Weighted()(group), [1.25, 0.75])
    np.testing.assert_allclose(Uniform()(group), [5 / 3, 1 / 3])
    np.testing.assert_allclose(WorstClient()(group), [0, -1])
    np.testing.assert_allclose(Median()(group), [0.5, 1.0])
    variance = [0.5 * 1.25**2 + 0.25 * 0.25**2 + 0.25 * 2.75**2, 0.5 * 1.25**2 + 0.25 * 1.75**2 + 0.25 * 0.75**2]
    np.testing.assert_allclose(MeanMinusVariance(penalty=2)(group), np.array([1.25, 0.75]) - 2 * np.array(variance))
    np.testing.assert_allclose(Gdpo()(group), [-0.5 + 0.25 + 0.25, 0.5 - 0.25 - 0.25])


@given(st.lists(numbers, min_size=1, max_size=7))
def test_the_median_with_equal_weights_is_the_plain_median(scores: list[float]) -> None:
    group = GroupDeviations(np.array(scores)[:, None], np.full(len(scores), 1 / len(scores)))
    np.testing.assert_allclose(Median()(group), [np.median(scores)])


def test_gdpo_gives_a_nearly_indifferent_client_almost_no_influence() -> None:
    group = GroupDeviations(np.array([[0.0, 1e-3], [1.0, -1.0]]), np.array([0.5, 0.5]))
    assert Gdpo(floor=0.1)(group)[0] > 0.48


@given(
    arrays(float, (12, 2), elements=numbers),
    arrays(float, (3, 4), elements=numbers),
    st.integers(-3, 6),
    st.integers(-(10**6), 10**6),
)
def test_standardising_removes_scale_and_offset(anchors: ndarray, groups: ndarray, exponent: int, shift: int) -> None:
    plain = fit_standardiser(anchors)
    moved = fit_standardiser(anchors * 10.0**exponent + shift)
    if not np.ptp(anchors, axis=1).any():
        return  # a client that scores every pair equally has no scale
    # Adding 10^6 leaves 10^-10 of a small score's digits.
    tolerance = 1e-6 * max(1.0, 10.0**-exponent)
    np.testing.assert_allclose(moved(groups * 10.0**exponent + shift), plain(groups), atol=tolerance)


@given(arrays(float, (3, 5, 2), elements=numbers), st.integers(1, 5), st.data())
def test_a_group_is_standardised_as_each_client_alone(anchors: ndarray, size: int, data: st.DataObject) -> None:
    group = data.draw(arrays(float, (3, size), elements=numbers))
    fitted = [fit_standardiser(pairs) for pairs in anchors]
    alone = [standardiser(scores) for standardiser, scores in zip(fitted, group, strict=True)]
    np.testing.assert_array_equal(standardise_group(fitted, group), alone)


@given(arrays(float, (12, 2), elements=numbers), arrays(float, 6, elements=numbers), st.integers(0, 5))
def test_an_outlier_is_bounded_and_keeps_the_order_of_the_other_scores(
    anchors: ndarray, group: ndarray, place: int
) -> None:
    standardiser = fit_standardiser(anchors)
    wild = group.copy()
    wild[place] = 1e9
    served = standardiser(wild)
    assert np.abs(served - np.median(served)).max() <= standardiser.limit / standardiser.spread + 1e-9
    order = np.argsort(group, kind="stable")
    assert (np.diff(standardiser(group)[order]) >= -1e-12).all()


def test_standardising_by_hand() -> None:
    anchors = np.array([[0.0, 2.0], [5.0, 1.0], [3.0, 3.0 + 4.0]])
    found = fit_standardiser(anchors)
    assert (found.spread, found.centre) == (4.0, 2.5)
    assert found.limit == pytest.approx(8.0)
    half = 2 * np.tanh(0.5)
    np.testing.assert_allclose(found(np.array([2.5, 6.5, -1.5])), [0, half, -half])
    np.testing.assert_allclose(found(np.array([2.5, 2.5, 1e6])), [0, 0, 2])


def test_a_constant_client_gives_equal_scores() -> None:
    found = fit_standardiser(np.full((5, 2), 7.0))
    assert np.ptp(found(np.array([1.0, 2.0, 3.0]))) == 0


@given(st.integers(1, 6), st.floats(0, 1), st.data())
def test_no_evidence_pushes_the_entropy_below_the_floor(clients: int, floor: float, data: st.DataObject) -> None:
    evidence = data.draw(arrays(float, (1, clients), elements=st.floats(0, 1e6)))
    available = np.array(data.draw(st.lists(st.booleans(), min_size=clients, max_size=clients)))
    available[0] = True
    found = gate.weights(evidence, available, entropy_floor=floor)[0]
    assert found.sum() == pytest.approx(1)
    assert (found[~available] == 0).all()
    assert gate.entropy(found) >= floor * math.log(available.sum()) - 1e-9


def test_without_clients_there_are_no_weights() -> None:
    with pytest.raises(ValueError, match="no client is available"):
        gate.weights(np.ones((1, 2)), np.zeros(2, bool), entropy_floor=0)


def test_a_group_without_a_quorum_has_no_reward() -> None:
    unit = IDENTITY
    shares = {"expert": 0.7, "other": 0.3}
    whole = ObjectiveWeights(1.0, shares, dict.fromkeys(shares, 1.0))
    rest = {"objective_weights": [whole], "standardisers": [dict.fromkeys(shares, unit)], "fusion": Weighted()}
    assert fuse({"other": [0, 1]}, quorum=0.5, **rest) == NoQuorum(0.3)
    assert fuse({}, quorum=0.0, **rest) == NoQuorum(0.0)
    fused = fuse({"expert": [0, 1]}, quorum=0.5, **rest)
    assert isinstance(fused, FusedGroup)
    assert fused.weights.tolist() == [1.0]
    np.testing.assert_allclose(fused.rewards, [0, 1])
    blend = [ObjectiveWeights(0.9, shares, whole.slopes), ObjectiveWeights(0.1, {"other": 1.0}, {"other": 1.0})]
    lost = fuse(
        {"expert": [0, 1]}, objective_weights=blend, standardisers=[{"expert": unit}, {}], fusion=Weighted(), quorum=0.1
    )
    assert lost == NoQuorum(0.0)  # the smaller objective lost its only client


@given(arrays(float, (3, 4), elements=numbers))
def test_the_reward_is_the_sum_of_the_weighted_calibrated_scores(raw: ndarray) -> None:
    unit = Standardiser(2.0, 3.0, 0.5, -4.0, 4.0)
    names = ("a", "b", "c")
    fused = fuse(
        {name: row.tolist() for name, row in zip(names, raw, strict=True)},
        objective_weights=[ObjectiveWeights(1.0, {"a": 0.2, "b": 0.5, "c": 0.3}, {"a": 1.0, "b": 0.5, "c": 0.0})],
        standardisers=[dict.fromkeys(names, unit)],
        fusion=Weighted(),
        quorum=0.5,
    )
    assert isinstance(fused, FusedGroup)
    np.testing.assert_allclose(fused.rewards, fused.weights @ fused.calibrated, atol=1e-12)


@given(arrays(float, (3, 4), elements=numbers), st.floats(0.01, 0.99), st.booleans())
def test_a_blend_is_the_sum_of_its_parts(raw: ndarray, share: float, failed: bool) -> None:
    names = ("a", "b", "c")
    answered = {name: row.tolist() for name, row in zip(names, raw, strict=True) if not (failed and name == "b")}
    first = ObjectiveWeights(1.0, {"a": 0.2, "b": 0.5, "c": 0.3}, {"a": 1.0, "b": 0.5, "c": 0.0})
    second = ObjectiveWeights(1.0, {"a": 0.4, "c": 0.6}, {"a": 0.25, "c": 3.0})  # b is not in this one's gate
    units = [dict.fromkeys(names, Standardiser(2.0, 3.0, 0.5, -4.0, 4.0)), dict.fromkeys(names, IDENTITY)]

    def reward(*objective_weights: ObjectiveWeights, standardisers: list[dict[str, Standardiser]]) -> ndarray:
        fused = fuse(
            answered, objective_weights=objective_weights, standardisers=standardisers, fusion=Weighted(), quorum=0.3
        )
        assert isinstance(fused, FusedGroup)
        np.testing.assert_allclose(fused.rewards, fused.weights @ fused.calibrated, atol=1e-9)
        return fused.rewards

    parts = [reward(first, standardisers=units[:1]), reward(second, standardisers=units[1:])]
    blend = reward(replace(first, share=share), replace(second, share=1 - share), standardisers=units)
    np.testing.assert_allclose(blend, share * parts[0] + (1 - share) * parts[1], atol=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6))
def test_a_text_is_shared_by_similarity(similarity: list[float]) -> None:
    found = objective_shares(np.array(similarity))
    assert found.sum() == pytest.approx(1)
    order = np.argsort(similarity, kind="stable")
    assert (np.diff(found[order]) >= -1e-12).all()
    np.testing.assert_allclose(objective_shares(np.array(similarity) - 0.25), found, atol=1e-9)
