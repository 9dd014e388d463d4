"""Error rates and power of the tests behind drift and answer reconciliation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mor_router.mathematics.drift_test import DriftBaseline, drift_result, fit_baseline
from mor_router.mathematics.e_process import EProcess, log_evidence
from mor_router.mathematics.permutation_test import p_value
from numpy import ndarray

ALPHA = 0.05


@pytest.mark.parametrize("mean", [0.3, 0.6, 0.9])
def test_an_e_process_keeps_its_false_alarm_rate_while_the_mean_holds(mean: float) -> None:
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        stakes = random.uniform(size=200)
        outcomes = (random.uniform(size=200) < mean).astype(float)
        alarms += log_evidence(outcomes, mean, stakes).max() >= -math.log(ALPHA)
    assert alarms <= 400 * ALPHA + 3 * math.sqrt(400 * ALPHA * (1 - ALPHA))


@pytest.mark.parametrize("mean", [1e-6, 0.5, 0.999])
def test_an_e_process_that_grows_by_observations_has_the_evidence_of_all(mean: float) -> None:
    random = np.random.default_rng(1)
    outcomes, stakes = random.uniform(size=2000).round(1), random.uniform(size=2000).round(1)
    process, found = EProcess(mean), []
    for outcome, stake in zip(outcomes.tolist(), stakes.tolist(), strict=True):
        process.add(outcome, stake)
        found.append(process.log_evidence)
    np.testing.assert_allclose(found, log_evidence(outcomes, mean, stakes), rtol=1e-9, atol=1e-9)


def client(random: np.random.Generator, count: int) -> tuple[ndarray, ndarray, ndarray]:
    """Return inputs, differences and influence of a specialist that misleads in two thirds of the inputs."""
    domain = random.integers(0, 3, size=count)
    inputs = 0.12 * random.normal(size=(count, 24))
    inputs[np.arange(count), domain] += 1
    truth = np.abs(1.4 * random.normal(size=count))
    differences = np.where(domain == 0, truth, -0.7 * truth) + random.normal(size=count)
    return inputs, differences, np.where(domain == 0, 0.8, 0.05)


def test_a_client_that_stays_as_it_is_does_not_drift_and_one_that_changes_does() -> None:
    alarms = {"same": 0, "flipped": 0, "louder": 0, "quieter": 0}
    trials, threshold = 100, -math.log(0.01)
    for trial in range(trials):
        random = np.random.default_rng(trial)
        _, differences, influence = client(random, 60)
        baseline = fit_baseline(differences, influence)
        _, later, stakes = client(random, 120)
        for kind, factor in {"same": 1.0, "flipped": -1.0, "louder": 1e3, "quieter": 1e-3}.items():
            alarms[kind] += drift_result(baseline, factor * later, stakes).log_evidence >= threshold
    assert alarms["same"] == 0
    assert alarms["louder"] == alarms["quieter"] == trials
    assert alarms["flipped"] >= 0.7 * trials  # two thirds of the anchors are outside its domain


def test_a_client_with_equal_scores_does_not_drift_while_they_stay_equal() -> None:
    flat = np.zeros(40)
    baseline = fit_baseline(flat, np.full(40, 0.1))
    assert drift_result(baseline, flat, np.full(40, 0.1)).log_evidence == 0


def test_a_stored_baseline_keeps_its_json_keys() -> None:
    _, differences, influence = client(np.random.default_rng(0), 60)
    baseline = fit_baseline(differences, influence)
    stored = baseline.model_dump(mode="json")
    keys = {"accuracy", "least_accuracy", "influence", "spread", "loudness", "least_concord", "disagreement"}
    assert set(stored) == keys
    assert DriftBaseline.model_validate(stored) == baseline
    del stored["disagreement"]  # a version that an earlier release stored
    assert DriftBaseline.model_validate(stored).disagreement is None


def test_a_two_faced_client_is_distinguished_from_an_honest_one() -> None:
    honest, two_faced = [], []
    for trial in range(40):
        random = np.random.default_rng(trial)
        inputs, differences, _ = client(random, 120)
        live = np.arange(120) < 36
        honest.append(p_value(inputs, differences, live))
        two_faced.append(p_value(inputs, np.where(live, -1, 1) * differences, live))
    assert np.mean(np.array(honest) < 0.05) <= 0.15
    assert np.mean(np.array(two_faced) <= 0.0005) >= 0.6
