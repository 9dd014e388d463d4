"""Suspicion of clients in live groups: what one client does protects no other one from it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from mor_router.mathematics.drift_test import DriftBaseline
from mor_router.mathematics.fusion import Weighted
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights, fuse
from mor_router.mathematics.standardise import Standardiser
from mor_router.trust.live_suspicion import LiveSuspicion

FIT = {"noise": 0.3, "a": 0.22, "b": 0.22, "c": 0.21, "small": 0.05}
BASELINE = DriftBaseline.model_validate(
    {"accuracy": 0.8, "least_accuracy": 0.7, "influence": 0.3, "spread": 1, "loudness": 0.5, "disagreement": 0.1}
)
KIND = ("a kind",)
UNIT = Standardiser(spread=1.0, limit=1e9, centre=0.0, low=0.0, high=0.0)


def suspects(
    answering: Callable[[int], set[str]],
    weighted: Callable[[int], set[str]],
    noisy: Callable[[int], str] = lambda _: "noise",
) -> frozenset[str]:
    """Return the suspects after 80 groups, in which one client answers with noise; all arguments are by group."""
    random, found = np.random.default_rng(41), LiveSuspicion()
    for number in range(80):
        truth = random.normal(size=5)
        scores = {name: truth + random.normal(0, 0.4, 5) for name in FIT} | {noisy(number): random.normal(size=5)}
        total = sum(FIT[name] for name in weighted(number))
        weights = ObjectiveWeights(
            1.0,
            {name: FIT[name] / total for name in weighted(number)},
            dict.fromkeys(weighted(number), 1.0),
            fit_weights={name: FIT[name] for name in weighted(number)},
        )
        group = fuse(
            {name: scores[name].tolist() for name in answering(number) & weighted(number)},
            objective_weights=[weights],
            standardisers=[dict.fromkeys(FIT, UNIT)],
            fusion=Weighted(),
            quorum=0.5,
        )
        assert isinstance(group, FusedGroup)
        found.observe("helpful", 1, group, weights=weights, kind=KIND, expected=dict.fromkeys(FIT, BASELINE))
    return found.suspects("helpful", KIND, answering(79))


@pytest.mark.parametrize("silent", ["small", "nobody"])
def test_noise_is_suspected_whether_or_not_a_client_with_little_weight_declines(silent: str) -> None:
    assert suspects(lambda _: {*FIT} - {silent}, lambda _: {*FIT}) == {"noise"}


def test_a_client_that_changes_its_model_to_and_fro_or_leaves_clears_nobody() -> None:
    assert suspects(lambda _: {*FIT}, lambda number: {*FIT} - {"small" if number % 10 else "nobody"}) == {"noise"}
    assert suspects(lambda _: {*FIT}, lambda number: {*FIT} - {"small" if number > 5 else "nobody"}) == {"noise"}


def test_without_a_client_of_much_weight_there_is_nothing_to_compare_discord_with() -> None:
    assert suspects(lambda _: {*FIT} - {"a"}, lambda _: {*FIT}) == frozenset()


def test_a_client_that_misbehaves_and_then_declines_everything_hides_no_other_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(FIT, "c", 0.19)
    monkeypatch.setitem(FIT, "small", 0.07)
    found = suspects(
        lambda number: {*FIT} - {"c" if number >= 45 else "nobody"},
        lambda _: {*FIT},
        lambda number: "c" if number < 45 else "noise",
    )
    assert found == {"noise"}
