"""Agreement of clients in live groups: evidence that audits and the disagreement monitor share."""

from __future__ import annotations

import numpy as np
import pytest
from mor_router.mathematics import loo_agreement
from mor_router.mathematics.drift_test import DriftBaseline
from mor_router.mathematics.fusion import Weighted
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights, fuse
from mor_router.mathematics.live_agreement import live_agreements
from mor_router.mathematics.standardise import Standardiser

CLIENTS = ("a", "b", "c", "d")
WEIGHTS = ObjectiveWeights(1.0, dict.fromkeys(CLIENTS, 0.25), {"a": 2.0, "b": 1.0, "c": 1.0, "d": 0.0})


def baseline(influence: float = 0.4, agreement: float = 0.5) -> DriftBaseline:
    stored = {"accuracy": 0.8, "least_accuracy": 0.7, "influence": influence, "spread": 1.0, "loudness": 0.5}
    return DriftBaseline.model_validate({**stored, "least_concord": agreement})


def fused(*clients: str, group: int = 5, suspects: tuple[str, ...] = ()) -> FusedGroup:
    random = np.random.default_rng(group)
    raw = {client: random.normal(size=group).tolist() for client in clients}
    raw["a"] = [-100 * value for value in raw["b"]]
    found = fuse(
        raw,
        objective_weights=[WEIGHTS],
        standardisers=[dict.fromkeys(CLIENTS, Standardiser(1.0, 1e3, 0.0, -1.0, 1.0))],
        fusion=Weighted(),
        quorum=0.0,
        suspects=suspects,
    )
    assert isinstance(found, FusedGroup)
    return found


def test_each_client_with_a_baseline_is_compared_with_all_others() -> None:
    group = fused(*CLIENTS)
    expected = {"a": baseline(), "b": baseline(influence=1.0), "d": baseline(), "unknown": baseline()}
    lines = live_agreements(group, expected)
    wanted = loo_agreement.of_group(group.calibrated, group.weights)
    assert [line.client for line in lines] == ["a", "b", "d"]
    assert [line.agreement for line in lines] == [wanted[0], wanted[1], wanted[3]]
    assert [line.stake for line in lines] == [1.0, 0.25, 0.0], "influence 0.5, 0.25, 0; by that at the fit, at most 1"


def test_a_limit_on_a_suspect_changes_no_stake() -> None:
    expected = dict.fromkeys(CLIENTS, baseline())
    free, limited = fused(*CLIENTS), fused(*CLIENTS, suspects=("a",))
    assert limited.slopes[0] < free.slopes[0]
    stakes = [[line.stake for line in live_agreements(group, expected)] for group in (free, limited)]
    assert stakes[0] == stakes[1], "a stake that depends on the scores would void the test"


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (fused("a", "b"), dict.fromkeys(CLIENTS, baseline())),
        (fused(*CLIENTS, group=1), dict.fromkeys(CLIENTS, baseline())),
        (fused(*CLIENTS), {}),
        (fused(*CLIENTS), dict.fromkeys(CLIENTS, baseline(influence=0.0))),
        (fused(*CLIENTS), dict.fromkeys(CLIENTS, baseline(influence=-1e-300))),
        (fused(*CLIENTS), dict.fromkeys(CLIENTS, baseline(agreement=0.0))),
        (fused(*CLIENTS), dict.fromkeys(CLIENTS, baseline(agreement=1.0))),
    ],
    ids=["two clients", "one response", "no fit", "no influence", "forged influence", "not tested", "no room"],
)
def test_nothing_is_compared_where_nothing_can_be(group: FusedGroup, expected: dict[str, DriftBaseline]) -> None:
    assert live_agreements(group, expected) == ()
