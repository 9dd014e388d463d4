"""Fit of a mixture on anchors: optimum, priors, regions and support; fitting and serving agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mor_core.errors import Invalid
from mor_router.mathematics.coefficients import Anchors, minimise
from mor_router.mathematics.fusion import Weighted
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights, fuse
from mor_router.mathematics.mixture import Mixture, fit_mixture
from mor_router.mathematics.prior_widths import widths
from mor_router.mathematics.regions import fit_regions
from mor_router.mathematics.support import fit_support
from mor_router.objectives.gates import checked_mixture, dump_mixture, load_mixture
from numpy import ndarray


def some_anchors(random: np.random.Generator, pairs: int = 40) -> Anchors:
    """Anchors with 3 clients that left some pairs unscored."""
    answered = random.random((pairs, 3)) < 0.8
    differences = random.normal(0.3, 1, size=(pairs, 3)) * answered
    return Anchors(random.random((pairs, 5)), differences, random.normal(size=pairs))


def test_the_fitted_function_is_the_served_function() -> None:
    random = np.random.default_rng(3)
    inputs, scores = random.normal(size=(40, 6)), random.normal(0.2, 1, size=(40, 3, 2))
    mixture, fitted = fit_mixture("abc", inputs, scores, entropy_floor=0.2)
    weights, slopes = mixture.weights(inputs, "abc"), mixture.slopes(inputs)
    assert (slopes >= 0).all()
    margins = []
    for n in range(40):
        at = ObjectiveWeights(1.0, *(dict(zip("abc", row[n], strict=True)) for row in (weights, slopes)))
        units = dict(zip("abc", mixture.standardisers, strict=True))
        given = dict(zip("abc", scores[n].tolist(), strict=True))
        fused = fuse(given, objective_weights=[at], standardisers=[units], fusion=Weighted(), quorum=0.5)
        assert isinstance(fused, FusedGroup)
        margins.append(fused.rewards[0] - fused.rewards[1])
    assert np.logaddexp(0, -np.array(margins)).mean() == pytest.approx(fitted.loss, abs=1e-12)


def test_the_gradient_is_that_of_the_documented_loss() -> None:
    random = np.random.default_rng(6)
    anchors, at = some_anchors(random), random.random((5, 3))
    penalised = anchors.penalised_loss()

    def stated(at: ndarray) -> float:
        theta = penalised.widths * at
        margins = anchors.known + np.einsum("nf,fk,nk->n", anchors.features, theta, anchors.differences)
        prior = np.square(theta / penalised.widths).sum()
        return float(-np.log(1 / (1 + np.exp(-margins))).sum() + 2.0 / 2 * prior)

    loss, gradient = penalised.loss_and_gradient(at, 2.0)
    assert loss == pytest.approx(stated(at))
    for place in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[place] = 1e-6
        assert (stated(at + step) - stated(at - step)) / 2e-6 == pytest.approx(gradient[place], abs=1e-6)


def test_the_fit_ends_at_the_one_minimum_wherever_it_starts() -> None:
    random = np.random.default_rng(4)
    penalised = some_anchors(random, 200).penalised_loss()
    found = minimise(penalised, 1.0)
    assert (found >= 0).all()
    _, gradient = penalised.loss_and_gradient(found, 1.0)
    assert np.abs(gradient[found > 0]).max() < 1e-8  # the conditions of Karush, Kuhn and Tucker
    assert gradient[found == 0].min() > -1e-8
    np.testing.assert_allclose(minimise(penalised, 1.0, start=5 * random.random((5, 3))), found, atol=1e-7)


@pytest.mark.parametrize("tolerance", [1.0, 1e-1, 1e-2])
def test_a_rough_fit_is_as_near_as_its_gradient_says(tolerance: float) -> None:
    penalised = some_anchors(np.random.default_rng(9), 200).penalised_loss()
    rough, exact = minimise(penalised, 2.0, tolerance=tolerance), minimise(penalised, 2.0)
    _, gradient = penalised.loss_and_gradient(rough, 2.0)
    left = np.where((rough > 0) | (gradient < 0), gradient, 0)
    assert np.abs(left).max() <= tolerance
    assert np.linalg.norm(rough - exact) <= np.linalg.norm(left) / 2


def test_a_prior_is_wide_where_a_client_is_good_and_narrow_where_it_misleads() -> None:
    random = np.random.default_rng(7)
    home = np.arange(120) % 3 == 0
    expert = np.where(home, 2.0, -1.0) + random.normal(size=120)
    coin = random.normal(size=120)
    features = np.stack([np.ones(120), 0.3 * home, 0.3 * ~home], axis=1)
    everywhere, at_home, abroad = widths(features, np.stack([expert, coin], axis=1), np.zeros(120))
    assert at_home[0] > 2 * everywhere[0]
    assert at_home[0] > 2 * at_home[1]
    assert abroad[0] <= everywhere[0]


def test_priors_of_useless_clients_are_equal() -> None:
    np.testing.assert_allclose(widths(np.ones((6, 1)), -np.ones((6, 2)), np.zeros(6)), np.sqrt(0.1))


def test_an_input_far_from_every_anchor_belongs_to_no_region() -> None:
    random = np.random.default_rng(5)
    near = np.concatenate([random.normal(centre, 0.1, size=(20, 6)) for centre in (-1.0, 0.0, 1.0)])
    regions = fit_regions(near, [3])
    assert regions.responsibilities(near).max(axis=1).min() > 0.8
    far = regions.responsibilities(np.full((1, 6), 50.0) * np.array([1, -1, 1, -1, 1, -1]))
    assert far.max() < 0.5


@given(st.integers(1, 80))
def test_responsibilities_sum_to_one_at_every_scale(count: int) -> None:
    random = np.random.default_rng(count)
    regions = fit_regions(random.normal(size=(count, 4)))
    found = regions.responsibilities(random.normal(size=(7, 4)))
    assert found.min() >= 0
    ends = np.cumsum(regions.scales)[:-1]
    for scale in np.split(found, ends, axis=1):
        np.testing.assert_allclose(scale.sum(axis=1), 1)


@pytest.mark.parametrize("pairs", [24, 100, 600])
def test_the_support_covers_inputs_like_the_anchors_and_no_other_kind(pairs: int) -> None:
    random = np.random.default_rng(pairs)
    centres = 3 * np.eye(3, 40)

    def about(kinds: int, count: int) -> ndarray:
        return centres[np.arange(count) % kinds] + 0.1 * random.normal(size=(count, 40))

    support = fit_support(about(2, pairs))
    assert len(support.landmarks) <= 128
    assert support.ood_score(about(2, 200)).max() < 0.2
    assert support.ood_score(centres[[2]] + 0.1 * random.normal(size=(200, 40))).min() > 0.9


def test_many_pairs_about_a_few_questions_do_not_put_all_others_out_of_distribution() -> None:
    random = np.random.default_rng(8)
    questions = random.normal(size=(12, 20))
    support = fit_support(np.repeat(questions, 5, axis=0))
    assert len(support.landmarks) == 12
    assert support.ood_score(questions).max() == 0
    assert support.ood_score(random.normal(size=(100, 20))).max() < 0.9
    assert (
        not fit_support(np.repeat(questions[:1], 5, axis=0)).ood_score(10 * questions).any()
    )  # there is no distance to measure by


def some_mixture() -> tuple[Mixture, ndarray]:
    """Return a mixture that trusts the first of three clients, and its inputs."""
    random = np.random.default_rng(1)
    inputs, scores = random.normal(size=(60, 6)), random.normal(size=(60, 3, 2))
    scores[:, 0, 0] += 3
    return fit_mixture("abc", inputs, scores, entropy_floor=0.1)[0], inputs


@pytest.mark.parametrize("available", ["abc", "ca", "b"])
def test_one_pass_over_a_batch_gives_the_values_of_each_input(available: str) -> None:
    mixture, inputs = some_mixture()
    batch = np.concatenate([inputs[:5], 3 * inputs[:5]])
    found = mixture.evaluate(batch, available)
    np.testing.assert_array_equal(found.weights, mixture.weights(batch, available))
    np.testing.assert_array_equal(found.slopes, mixture.slopes(batch))
    np.testing.assert_array_equal(found.ood_score, mixture.ood_score(batch))
    assert 0 < found.ood_score.max() < 1
    for row, x in enumerate(batch):
        alone = mixture.evaluate(x[None], available)
        np.testing.assert_allclose(alone.weights[0], found.weights[row], rtol=1e-9)
        np.testing.assert_allclose(alone.slopes[0], found.slopes[row], rtol=1e-9)


def test_far_from_the_anchors_every_client_counts_the_same() -> None:
    mixture, inputs = some_mixture()
    known = mixture.evidence(inputs)
    assert mixture.weights(inputs, "abc")[:, 0].min() > 0.5
    assert not mixture.ood_score(inputs).any()
    far = 30 * inputs[:5]
    np.testing.assert_allclose(mixture.evidence(far), known.mean(), rtol=0.01)
    np.testing.assert_allclose(mixture.weights(far, "abc"), 1 / 3, rtol=0.01)


def test_a_stored_gate_is_served_as_it_was_fitted_with_or_without_a_support() -> None:
    mixture, inputs = some_mixture()
    kept = dump_mixture(mixture)
    assert {"clients", "standardisers", "regions", "coefficients", "reach", "typical", "entropy_floor"} == set(kept)
    np.testing.assert_array_equal(load_mixture(kept).evidence(2 * inputs), mixture.evidence(2 * inputs))
    old = load_mixture({name: value for name, value in kept.items() if name not in ("reach", "typical")})
    assert not old.ood_score(30 * inputs).any()
    np.testing.assert_array_equal(old.evidence(inputs), mixture.evidence(inputs))


@pytest.mark.parametrize(
    ("field", "forged"),
    [
        ("spread", 1e-300),
        ("spread", 0.0),
        ("spread", -1.0),
        ("limit", 1e300),
        ("coefficients", 1e300),
        ("typical", -1e300),
    ],
)
def test_a_stored_gate_with_absurd_parameters_is_refused(field: str, forged: float) -> None:
    mixture, inputs = some_mixture()
    kept = dump_mixture(mixture)
    assert checked_mixture(kept, inputs.shape[1]).clients == mixture.clients
    if field in ("spread", "limit"):
        kept["standardisers"][0][field] = forged
    else:
        kept[field] = forged if field == "typical" else np.full_like(mixture.coefficients, forged).tolist()
    with pytest.raises(Invalid):
        checked_mixture(kept, inputs.shape[1])


def test_log_odds_of_independent_clients_add_up() -> None:
    """Two clients with independent errors have more evidence together than either alone, in logits."""
    random = np.random.default_rng(2)
    truth = np.abs(random.normal(size=(2000, 1)))
    differences = truth + random.normal(size=(2000, 2))
    scores = np.stack([differences / 2, -differences / 2], axis=2)
    inputs = random.normal(size=(2000, 3))
    both, _ = fit_mixture("ab", inputs, scores, entropy_floor=0.1)
    alone, _ = fit_mixture("a", inputs, scores[:, :1], entropy_floor=0.1)
    assert both.evidence(inputs).sum(axis=1).mean() > 1.6 * alone.evidence(inputs).mean()


@pytest.mark.parametrize(
    ("factor", "shift"), [*((10.0**k, 0.0) for k in range(-3, 7)), (1.0, 1e6), (1.0, -1e6), (1.0, 12345.678)]
)
def test_a_refit_removes_every_scale_and_offset_of_a_client(factor: float, shift: float) -> None:
    random = np.random.default_rng(8)
    inputs = np.concatenate([random.normal(centre, 0.3, size=(24, 6)) for centre in (-1.0, 0.0, 1.0)])
    scores = random.normal(size=(72, 3, 2))
    for k in range(3):
        scores[24 * k : 24 * (k + 1), k, 0] += 1.5
    groups = random.normal(size=(3, 5, 3, 8))

    def rewards(moved: ndarray, raw: ndarray) -> ndarray:
        mixture, _ = fit_mixture(("a", "b", "c"), inputs, moved, entropy_floor=0.1)
        units = dict(zip(mixture.clients, mixture.standardisers, strict=True))
        found = []
        for place in range(3):
            x = inputs[[24 * place]]
            weights, slopes = mixture.weights(x, mixture.clients)[0], mixture.slopes(x)[0]
            at = ObjectiveWeights(1.0, *(dict(zip("abc", row, strict=True)) for row in (weights, slopes)))
            for group in raw[place]:
                given = dict(zip("abc", group.tolist(), strict=True))
                fused = fuse(
                    given,
                    objective_weights=[at],
                    standardisers=[units],
                    fusion=Weighted(),
                    quorum=0.5,
                )
                assert isinstance(fused, FusedGroup)
                found.append(fused.rewards)
        return np.array(found)

    changed, raw = scores.copy(), groups.copy()
    changed[:, 1] = changed[:, 1] * factor + shift
    raw[:, :, 1] = raw[:, :, 1] * factor + shift
    np.testing.assert_allclose(rewards(changed, raw), rewards(scores, groups), atol=1e-6)
