"""Standardising, calibrating, gating and fusing: properties that must hold for whatever clients say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mor_router import calibration, gate
from mor_router.fit import Anchors, Objective, Parameters, minimise
from mor_router.fuse import Fused, Lens, NoQuorum, fuse
from mor_router.fusion import FusionChoice, Gdpo, MeanMinusVariance, Median, Panel, Uniform, Weighted, WorstClient
from mor_router.likeness import shares
from mor_router.mixture import fit_mixture
from mor_router.regions import fit_regions
from mor_router.standardise import Standardiser, fit_standardiser
from numpy import ndarray

effort.register_profile("steady", deadline=None)  # a busy machine is no failure
effort.load_profile("steady")

IDENTITY = Standardiser(1.0, 1e9, 0.0, -1e9, 1e9)
STRATEGIES = [Weighted(), Uniform(), Median(), WorstClient(), MeanMinusVariance(penalty=0.5), Gdpo(floor=0.1)]

# Multiples of 1/64 keep sums exact, so that equalities are equalities.
numbers = st.integers(-640, 640).map(lambda n: n / 64)


@st.composite
def panels(draw: st.DrawFn) -> Panel:
    clients, group = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    calibrated = draw(arrays(float, (clients, group), elements=numbers))
    weights = np.array(draw(st.lists(st.integers(1, 100), min_size=clients, max_size=clients)), dtype=float)
    return Panel(calibrated, weights / weights.sum())


@given(panels(), st.sampled_from(STRATEGIES))
def test_fusion_does_not_depend_on_the_order_of_clients_or_responses(panel: Panel, fusion: FusionChoice) -> None:
    generator = np.random.default_rng(0)
    clients = generator.permutation(len(panel.weights))
    responses = generator.permutation(panel.calibrated.shape[1])
    moved = Panel(panel.calibrated[clients][:, responses], panel.weights[clients])
    np.testing.assert_allclose(fusion(moved), fusion(panel)[responses], atol=1e-9)


@given(panels(), st.sampled_from([Weighted(), Uniform(), Median(), WorstClient(), Gdpo()]))
def test_a_response_that_every_client_finds_at_least_as_good_is_rewarded_at_least_as_much(
    panel: Panel, fusion: FusionChoice
) -> None:
    rewards = fusion(panel)
    better = (panel.calibrated[:, :, None] >= panel.calibrated[:, None, :]).all(axis=0)
    assert (rewards[:, None] >= rewards[None, :] - 1e-9)[better].all()


@given(st.integers(1, 5), st.integers(1, 8), numbers, st.sampled_from(STRATEGIES))
def test_an_indifferent_group_gets_equal_rewards(clients: int, group: int, score: float, fusion: FusionChoice) -> None:
    panel = Panel(np.full((clients, group), score), np.full(clients, 1 / clients))
    assert np.ptp(fusion(panel)) < 1e-12


def test_strategies_by_hand() -> None:
    panel = Panel(np.array([[0.0, 2.0], [1.0, -1.0], [4.0, 0.0]]), np.array([0.5, 0.25, 0.25]))
    np.testing.assert_allclose(Weighted()(panel), [1.25, 0.75])
    np.testing.assert_allclose(Uniform()(panel), [5 / 3, 1 / 3])
    np.testing.assert_allclose(WorstClient()(panel), [0, -1])
    np.testing.assert_allclose(Median()(panel), [0.5, 1.0])
    variance = [0.5 * 1.25**2 + 0.25 * 0.25**2 + 0.25 * 2.75**2, 0.5 * 1.25**2 + 0.25 * 1.75**2 + 0.25 * 0.75**2]
    np.testing.assert_allclose(MeanMinusVariance(penalty=2)(panel), np.array([1.25, 0.75]) - 2 * np.array(variance))
    np.testing.assert_allclose(Gdpo()(panel), [-0.5 + 0.25 + 0.25, 0.5 - 0.25 - 0.25])


@given(st.lists(numbers, min_size=1, max_size=7))
def test_the_median_with_equal_weights_is_the_plain_median(scores: list[float]) -> None:
    panel = Panel(np.array(scores)[:, None], np.full(len(scores), 1 / len(scores)))
    np.testing.assert_allclose(Median()(panel), [np.median(scores)])


def test_gdpo_gives_a_nearly_indifferent_client_almost_no_voice() -> None:
    panel = Panel(np.array([[0.0, 1e-3], [1.0, -1.0]]), np.array([0.5, 0.5]))
    assert Gdpo(floor=0.1)(panel)[0] > 0.48


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
        return  # a client that never tells two responses apart has no scale
    # Adding 10^6 leaves 10^-10 of a small score's digits.
    tolerance = 1e-6 * max(1.0, 10.0**-exponent)
    np.testing.assert_allclose(moved(groups * 10.0**exponent + shift), plain(groups), atol=tolerance)


@given(arrays(float, (12, 2), elements=numbers), arrays(float, 6, elements=numbers), st.integers(0, 5))
def test_an_outburst_moves_nothing_else_and_is_bounded(anchors: ndarray, group: ndarray, place: int) -> None:
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
    assert found.limit == pytest.approx(4.0)
    np.testing.assert_allclose(found(np.array([2.5, 6.5, -1.5])), [0, 1, -1])
    np.testing.assert_allclose(found(np.array([2.5, 2.5, 100.0])), [0, 0, 1])


def test_a_constant_client_says_nothing() -> None:
    found = fit_standardiser(np.full((5, 2), 7.0))
    assert np.ptp(found(np.array([1.0, 2.0, 3.0]))) == 0


@given(st.integers(1, 6), st.integers(1, 4), st.floats(0, 1), st.data())
def test_no_logits_push_the_entropy_below_the_floor(
    clients: int, regions: int, floor: float, data: st.DataObject
) -> None:
    logits = data.draw(arrays(float, (regions, clients), elements=st.floats(-1000, 1000)))
    available = np.array(data.draw(st.lists(st.booleans(), min_size=clients, max_size=clients)))
    available[0] = True
    phi = np.full((1, regions), 1 / regions)
    found = gate.weights(phi, logits, np.zeros(clients), available, temperature=1, entropy_floor=floor)[0]
    assert found.sum() == pytest.approx(1)
    assert (found[~available] == 0).all()
    assert gate.entropy(found) >= floor * math.log(available.sum()) - 1e-9


def test_without_clients_there_are_no_weights() -> None:
    with pytest.raises(ValueError, match="no client is available"):
        gate.weights(np.ones((1, 1)), np.zeros((1, 2)), np.zeros(2), np.zeros(2, bool), temperature=1, entropy_floor=0)


def scattered(random: np.random.Generator, regions: int, clients: int) -> Parameters:
    """Parameters away from the start."""
    start = Parameters.start(regions, clients)
    return start.like(start.flat() + random.normal(size=start.flat().shape))


def some_anchors(random: np.random.Generator) -> Anchors:
    """20 pairs in 4 regions by 3 clients who do not answer everything."""
    phi = random.dirichlet(np.ones(4), size=20)
    answered = random.random((20, 3)) < 0.8
    answered[:, 0] = True
    return Anchors(phi, random.normal(size=(20, 3)) * answered, answered)


def test_the_function_that_is_fitted_is_the_function_that_is_served() -> None:
    random = np.random.default_rng(3)
    anchors, at = some_anchors(random), scattered(random, 4, 3)
    phi = anchors.responsibilities
    fitted = Objective(anchors, 1.0, 0.7, 0.2).margins(at)
    slopes = calibration.slopes(phi, at.common, at.regional)
    for n in range(20):
        rest = {"temperature": 0.7, "entropy_floor": 0.2}
        served = gate.weights(phi[n : n + 1], at.embeddings, at.prior, anchors.answered[n], **rest)[0]
        assert served @ (slopes[n] * anchors.differences[n]) == pytest.approx(fitted[n], abs=1e-12)


def test_the_gradient_is_that_of_the_loss_as_it_is_written() -> None:
    random = np.random.default_rng(6)
    anchors, at = some_anchors(random), scattered(random, 4, 3)
    objective = Objective(anchors, 2.0, 0.7, 0.2)
    loss, gradient = objective(at)
    margins = objective.margins(at)
    own = calibration.slopes(anchors.responsibilities, at.common, at.regional) * anchors.differences
    alone = [np.logaddexp(0, -own[anchors.answered[:, k], k]).mean() for k in range(3)]
    squares = 2.0 * (np.square(at.embeddings).sum() + np.square(at.regional).sum())
    squares += 0.5 * (np.square(at.prior).sum() + np.square(at.common - calibration.UNIT).sum())
    assert loss == pytest.approx(np.logaddexp(0, -margins).mean() + 0.5 * np.mean(alone) + squares / 40)
    flat = at.flat()
    for place, slope in enumerate(gradient.flat()):
        step = np.zeros_like(flat)
        step[place] = 1e-6
        rise = objective(at.like(flat + step))[0] - objective(at.like(flat - step))[0]
        assert rise / 2e-6 == pytest.approx(slope, abs=1e-8)


def test_the_fit_ends_at_a_minimum_of_the_stated_loss() -> None:
    random = np.random.default_rng(4)
    phi = random.dirichlet(np.ones(3), size=40)
    anchors = Anchors(phi, random.normal(0.3, 1, size=(40, 3)), np.ones((40, 3), bool))
    objective = Objective(anchors, 1.0, 1.0, 0.1)
    found = minimise(objective, objective.start())
    best, gradient = objective(found)
    assert np.abs(gradient.flat()).max() < 1e-6
    for _ in range(20):
        step = 0.05 * random.normal(size=found.flat().shape)
        assert objective(found.like(found.flat() + step))[0] > best


def test_an_input_far_from_every_anchor_belongs_to_no_region() -> None:
    random = np.random.default_rng(5)
    near = np.concatenate([random.normal(centre, 0.1, size=(20, 6)) for centre in (-1.0, 0.0, 1.0)])
    (regions,) = fit_regions(near, [3])
    assert regions.responsibilities(near).max(axis=1).min() > 0.8
    far = regions.responsibilities(np.full((1, 6), 50.0) * np.array([1, -1, 1, -1, 1, -1]))
    assert far.max() < 0.5


def test_a_group_without_a_quorum_has_no_reward() -> None:
    unit = Standardiser(1.0, 10.0, 0.0, -10.0, 10.0)
    shares = {"expert": 0.7, "other": 0.3}
    lens = Lens(1.0, shares, dict.fromkeys(shares, 1.0))
    rest = {"lenses": [lens], "standardisers": [dict.fromkeys(shares, unit)], "fusion": Weighted()}
    assert fuse({"other": [0, 1]}, quorum=0.5, **rest) == NoQuorum(0.3)
    assert fuse({}, quorum=0.0, **rest) == NoQuorum(0.0)
    fused = fuse({"expert": [0, 1]}, quorum=0.5, **rest)
    assert isinstance(fused, Fused)
    assert fused.weights.tolist() == [1.0]
    np.testing.assert_allclose(fused.rewards, [0, 1])
    blend = [Lens(0.9, shares, lens.slopes), Lens(0.1, {"other": 1.0}, {"other": 1.0})]
    lost = fuse({"expert": [0, 1]}, lenses=blend, standardisers=[{"expert": unit}, {}], fusion=Weighted(), quorum=0.1)
    assert lost == NoQuorum(0.0)  # the smaller objective lost its only client


@given(arrays(float, (3, 4), elements=numbers))
def test_the_reward_is_the_sum_of_what_the_account_shows(raw: ndarray) -> None:
    unit = Standardiser(2.0, 3.0, 0.5, -4.0, 4.0)
    names = ("a", "b", "c")
    fused = fuse(
        {name: row.tolist() for name, row in zip(names, raw, strict=True)},
        lenses=[Lens(1.0, {"a": 0.2, "b": 0.5, "c": 0.3}, {"a": 1.0, "b": 0.5, "c": 0.0})],
        standardisers=[dict.fromkeys(names, unit)],
        fusion=Weighted(),
        quorum=0.5,
    )
    assert isinstance(fused, Fused)
    np.testing.assert_allclose(fused.rewards, fused.weights @ fused.calibrated, atol=1e-12)


@given(arrays(float, (3, 4), elements=numbers), st.floats(0.01, 0.99), st.booleans())
def test_a_blend_is_the_sum_of_its_parts(raw: ndarray, share: float, failed: bool) -> None:
    names = ("a", "b", "c")
    answered = {name: row.tolist() for name, row in zip(names, raw, strict=True) if not (failed and name == "b")}
    first = Lens(1.0, {"a": 0.2, "b": 0.5, "c": 0.3}, {"a": 1.0, "b": 0.5, "c": 0.0})
    second = Lens(1.0, {"a": 0.4, "c": 0.6}, {"a": 0.25, "c": 3.0})  # b is not in this one's gate
    units = [dict.fromkeys(names, Standardiser(2.0, 3.0, 0.5, -4.0, 4.0)), dict.fromkeys(names, IDENTITY)]

    def reward(*lenses: Lens, standardisers: list[dict[str, Standardiser]]) -> ndarray:
        fused = fuse(answered, lenses=lenses, standardisers=standardisers, fusion=Weighted(), quorum=0.3)
        assert isinstance(fused, Fused)
        np.testing.assert_allclose(fused.rewards, fused.weights @ fused.calibrated, atol=1e-9)
        return fused.rewards

    parts = [reward(first, standardisers=units[:1]), reward(second, standardisers=units[1:])]
    blend = reward(replace(first, share=share), replace(second, share=1 - share), standardisers=units)
    np.testing.assert_allclose(blend, share * parts[0] + (1 - share) * parts[1], atol=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6))
def test_a_text_is_shared_by_likeness(likeness: list[float]) -> None:
    found = shares(np.array(likeness))
    assert found.sum() == pytest.approx(1)
    order = np.argsort(likeness, kind="stable")
    assert (np.diff(found[order]) >= -1e-12).all()
    np.testing.assert_allclose(shares(np.array(likeness) - 0.25), found, atol=1e-9)


@pytest.mark.parametrize(
    ("factor", "shift"), [*((10.0**k, 0.0) for k in range(-3, 7)), (1.0, 1e6), (1.0, -1e6), (1.0, 12345.678)]
)
def test_a_refit_takes_every_scale_and_offset_of_a_client_away(factor: float, shift: float) -> None:
    random = np.random.default_rng(8)
    inputs = np.concatenate([random.normal(centre, 0.3, size=(24, 6)) for centre in (-1.0, 0.0, 1.0)])
    scores = random.normal(size=(72, 3, 2))
    for k in range(3):
        scores[24 * k : 24 * (k + 1), k, 0] += 1.5
    groups = random.normal(size=(3, 5, 3, 8))

    def rewards(moved: ndarray, raw: ndarray) -> ndarray:
        mixture, _ = fit_mixture(("a", "b", "c"), inputs, moved, temperature=1.0, entropy_floor=0.1)
        units = dict(zip(mixture.clients, mixture.standardisers, strict=True))
        found = []
        for place in range(3):
            x = inputs[[24 * place]]
            weights, slopes = mixture.weights(x, mixture.clients)[0], mixture.slopes(x)[0]
            lens = Lens(1.0, dict(zip("abc", weights, strict=True)), dict(zip("abc", slopes, strict=True)))
            for group in raw[place]:
                said = dict(zip("abc", group.tolist(), strict=True))
                fused = fuse(said, lenses=[lens], standardisers=[units], fusion=Weighted(), quorum=0.5)
                assert isinstance(fused, Fused)
                found.append(fused.rewards)
        return np.array(found)

    changed, raw = scores.copy(), groups.copy()
    changed[:, 1] = changed[:, 1] * factor + shift
    raw[:, :, 1] = raw[:, :, 1] * factor + shift
    np.testing.assert_allclose(rewards(changed, raw), rewards(scores, groups), atol=1e-6)
