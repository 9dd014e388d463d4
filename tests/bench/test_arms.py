"""Every arm on a population with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from mor_router.mathematics.fusion import Weighted
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights, fuse
from mor_router.mathematics.mixture import fit_mixture
from quality.arms import Arm, MixtureOfRewards, Oracle, OtherModel, UniformRaw, ablations, baselines
from quality.arms.mixture import serve
from quality.arms.stacking import regress
from quality.group_scores import AnchorPairs, agreement

from tests.bench.synthetic import anchors, groups

HELD_OUT = groups(800, seed=1)
ARMS = [*baselines(), MixtureOfRewards(), *ablations(), Oracle(HELD_OUT)]


def accuracy(arm: Arm, fitted_on: AnchorPairs | None = None) -> float:
    return float(agreement(arm.fit(fitted_on or anchors())(HELD_OUT)).mean())


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.title)
def test_an_arm_gives_each_response_a_finite_reward_for_any_group_size(arm: Arm) -> None:
    live = groups(12, seed=2, size=5)
    rewards = arm.fit(anchors())(live)
    assert rewards.shape == (12, 5)
    assert np.isfinite(rewards).all()


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.title)
def test_an_arm_does_not_depend_on_the_order_of_the_held_out_groups(arm: Arm) -> None:
    if "Thompson" in arm.title:
        pytest.skip("it draws at random, group by group")
    score, order = arm.fit(anchors()), np.random.default_rng(0).permutation(len(HELD_OUT))
    np.testing.assert_allclose(score(HELD_OUT)[order], score(HELD_OUT.take(order)))


def test_choice_by_input_finds_the_specialists_and_one_client_for_all_does_not() -> None:
    chosen = {arm.title: accuracy(arm) for arm in ARMS}
    best = chosen["oracle (best client per sub-skill)"]
    assert best > 0.9
    assert chosen["best single client"] < 0.65
    for title in ("MoR", "LinUCB choice (LASeR)", "Thompson choice (BayesianRouter)"):
        assert chosen[title] > 0.8, title
    assert chosen["MoR"] > best - 0.03
    assert chosen["MoR"] > chosen["domain classifier + best client"] + 0.1
    assert chosen["no regions: global instead of regional slopes"] < chosen["MoR"] - 0.1


def test_mor_equals_the_routers_rewards_group_by_group() -> None:
    pairs, live = anchors().pairs, groups(30, seed=3, size=6)
    clients = [f"client {k}" for k in range(pairs.scores.shape[1])]
    mixture, _ = fit_mixture(clients, pairs.inputs, pairs.scores, entropy_floor=0.1)
    weights, slopes = mixture.weights(live.inputs, clients), mixture.slopes(live.inputs)
    for n, ours in enumerate(serve(mixture, live)):
        served = fuse(
            dict(zip(clients, live.scores[n].tolist(), strict=True)),
            objective_weights=[
                ObjectiveWeights(1.0, *(dict(zip(clients, row[n].tolist(), strict=True)) for row in (weights, slopes)))
            ],
            standardisers=[dict(zip(clients, mixture.standardisers, strict=True))],
            fusion=Weighted(),
            quorum=0.5,
        )
        assert isinstance(served, FusedGroup)
        np.testing.assert_allclose(ours, served.rewards, atol=1e-9)


def test_stacking_finds_the_minimum_of_its_loss() -> None:
    random = np.random.default_rng(0)
    differences = random.normal((1.0, 0.0, -0.5), 1.0, size=(200, 3))
    found = regress(differences, 1.0)

    def loss(weights: np.ndarray) -> float:
        return float(np.logaddexp(0, -differences @ weights).sum() + weights @ weights / 2)

    assert all(loss(found) < loss(found + step) for step in 0.01 * random.normal(size=(50, 3)))


def test_other_models_and_the_raw_mean_need_no_anchors() -> None:
    live = groups(8, seed=4)
    own = {"central": np.arange(16.0).reshape(8, 2)}
    nothing = AnchorPairs(live.take(np.zeros(8, dtype=bool)))
    model = OtherModel("central", "centralised")
    seen = live.__class__(live.inputs, live.scores, live.skills, own)
    np.testing.assert_array_equal(model.fit(nothing)(seen), own["central"])
    np.testing.assert_allclose(UniformRaw().fit(nothing)(live), live.scores.mean(axis=1))
