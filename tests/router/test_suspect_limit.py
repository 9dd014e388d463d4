"""The say of suspected clients in a group."""

from __future__ import annotations

import numpy as np
from mor_router.mathematics.fusion import Weighted
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights, fuse
from mor_router.mathematics.standardise import Standardiser
from mor_router.mathematics.suspect_limit import limits

_AS_IT_IS = Standardiser(spread=1.0, limit=1e9, centre=0.0, low=0.0, high=0.0)


def fused(weights: dict[str, float], suspects: tuple[str, ...]) -> FusedGroup:
    scores = {name: [3.0, 2.0, 1.0] for name in weights} | {"strong": [1.0, 2.0, 3.0]}
    found = fuse(
        scores,
        objective_weights=[ObjectiveWeights(1.0, weights, dict.fromkeys(weights, 1.0))],
        standardisers=[dict.fromkeys(weights, _AS_IT_IS)],
        fusion=Weighted(),
        quorum=0.5,
        suspects=suspects,
    )
    assert isinstance(found, FusedGroup)
    return found


def test_a_suspect_cannot_outvote_the_others_and_keeps_its_weight_and_a_voice() -> None:
    weights = {"strong": 0.6, "other": 0.4}
    assert fused(weights, ()).rewards.argmax() == 2
    found = fused(weights, ("strong",))
    assert found.rewards.argmax() == 0
    assert found.weights[0] == 0.6
    assert np.ptp(found.calibrated[0]) > 0
    assert fused(weights, ("nobody",)).rewards.tolist() == fused(weights, ()).rewards.tolist()


def test_the_only_expert_for_an_input_keeps_its_say_under_suspicion() -> None:
    assert fused({"strong": 0.8, "other": 0.2}, ("strong",)).rewards.argmax() == 2


def test_a_part_within_the_limit_and_a_group_of_suspects_alone_are_unchanged() -> None:
    parts = np.array([[1.0, -1.0], [4.0, -4.0]])
    assert limits(parts, np.array([0.2, 0.8]), np.array([True, False])).tolist() == [1, 1]
    assert limits(parts, np.array([0.5, 0.5]), np.array([True, True])).tolist() == [1, 1]
    assert limits(-parts * [[1], [-1]], np.array([0.5, 0.5]), np.array([False, True])).tolist() == [1, 0.0625]
    assert limits(parts, np.array([0.5, 0.5]), np.array([False, True])).tolist() == [1, 0.0625]
