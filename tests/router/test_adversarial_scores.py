"""No client's scores make the mathematics of the router fail or a number of another client non-finite."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mor_core.wire import LARGEST_SCORE, ClientScore
from mor_router.learning.gate_fitter import drift_baselines
from mor_router.mathematics import drift_test
from mor_router.mathematics.fusion import Gdpo, MeanMinusVariance, Median, Uniform, Weighted, WorstClient
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights, fuse
from mor_router.mathematics.mixture import extend_mixture, fit_mixture
from mor_router.mathematics.standardise import fit_standardiser
from mor_router.objectives.gate_report import build_report
from mor_router.objectives.gates import dump_mixture, load_mixture
from mor_router.rewarding.influence import contributions
from mor_router.trust.answer_reconciliation import contradiction
from mor_router.trust.quarantine import QuarantineEvidence, _judged

PAIRS, FEATURES, GROUP = 48, 6, 5
HONEST = ("first", "second", "third")
NAMES = (*HONEST, "bad")
SIZES = (0.0, -0.0, 5e-324, 1e-320, 1e-308, 1e-160, 1e-12, 1.0, 1e8 + 0.1, 1e9, -1e9, -1e-300)
ONE = st.sampled_from(SIZES) | st.floats(-LARGEST_SCORE, LARGEST_SCORE)


@st.composite
def columns(draw: st.DrawFn) -> np.ndarray:
    """Draw an adversary's scores of all anchors: a few values in some pattern, with gaps."""
    values = np.array(draw(st.lists(ONE, min_size=1, max_size=6)))
    chaos = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pattern = draw(st.sampled_from(["constant", "alternating", "random", "labels", "ties", "jumping level"]))
    scores = values[chaos.integers(0, len(values), size=(PAIRS, 2))]
    if pattern == "constant":
        scores[:] = values[0]
    elif pattern == "alternating":
        scores[::2], scores[1::2] = values[0], values[-1]
    elif pattern == "labels":
        scores[:, 0], scores[:, 1] = values.max(), values.min()
    elif pattern == "ties":
        scores[:, 1] = scores[:, 0]
        scores[0, 1] = values[-1]
    elif pattern == "jumping level":
        scores[:] = chaos.choice([0.0, 1e9], size=(PAIRS, 1))
        scores[:, 0] = np.nextafter(scores[:, 0], np.inf)
    missing = chaos.random(PAIRS) < draw(st.sampled_from([0.0, 0.0, 0.3, 0.5]))
    missing[:8] = False  # with fewer scores a client is not fitted
    scores[missing] = np.nan
    return np.asarray(np.clip(scores, -LARGEST_SCORE, LARGEST_SCORE))


def anchors() -> tuple[np.ndarray, np.ndarray]:
    """Make embeddings of anchors, and the honest clients' scores of them."""
    random = np.random.default_rng(5)
    inputs = random.normal(size=(PAIRS, FEATURES))
    better = random.normal(1.0, 1.0, size=(PAIRS, len(HONEST)))
    return inputs, np.stack([better, random.normal(size=(PAIRS, len(HONEST)))], axis=2)


def finite(value: Any, where: str = "") -> None:
    """Check that a nested structure has no number that is not finite."""
    if isinstance(value, float):
        assert math.isfinite(value), where
    elif isinstance(value, dict):
        for name, inner in value.items():
            finite(inner, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            finite(inner, where)


@given(bad=columns(), other=columns(), live=st.lists(ONE, min_size=GROUP, max_size=GROUP))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_fit_with_any_client_succeeds_and_is_finite(bad: np.ndarray, other: np.ndarray, live: list[float]) -> None:
    inputs, scores = anchors()
    scores = np.concatenate([scores, bad[:, None]], axis=1)
    mixture, fitted = fit_mixture(NAMES, inputs, scores, entropy_floor=0.1)
    domains = [None] * PAIRS
    report = build_report(mixture, fitted, inputs=inputs, scores=scores, domains=domains, left_out={}, seconds=0.0)
    baselines = drift_baselines(mixture, inputs, scores)
    finite(report.model_dump())
    finite({name: line.model_dump() for name, line in baselines.items()})
    stored = load_mixture(json.loads(json.dumps(dump_mixture(mixture), allow_nan=False)))
    extended, _ = extend_mixture(stored, ["other"], inputs, np.concatenate([scores, other[:, None]], axis=1), 1.0)
    finite(dump_mixture(extended))

    alone, _ = fit_mixture(HONEST, inputs, scores[:, :3], entropy_floor=0.1)
    assert mixture.standardisers[:3] == alone.standardisers  # the adversary does not touch them
    check_live_group(mixture, inputs[:1], live)

    answered = ~np.isnan(bad).any(axis=1)
    differences = bad[answered, 0] - bad[answered, 1]
    result = drift_test.drift_result(baselines["bad"], differences, np.ones(len(differences)))
    assert math.isfinite(result.log_evidence)


def check_live_group(mixture: Any, inputs: np.ndarray, live: list[float]) -> None:
    """Check that whatever the adversary scores, the rewards move by no more than its weight allows."""
    weights, slopes = mixture.weights(inputs, NAMES)[0], mixture.slopes(inputs)[0]
    objective = ObjectiveWeights(
        1.0, dict(zip(NAMES, weights.tolist(), strict=True)), dict(zip(NAMES, slopes.tolist(), strict=True))
    )
    raw: dict[str, Any] = {name: [0.1 * k * i for i in range(GROUP)] for k, name in enumerate(HONEST, 1)}
    units = [dict(zip(NAMES, mixture.standardisers, strict=True))]
    found = []
    for scores in ([0.0] * GROUP, live):
        for fusion in (Weighted(), Uniform(), Median(), WorstClient(), MeanMinusVariance(), Gdpo()):
            group = fuse(
                raw | {"bad": scores}, objective_weights=[objective], standardisers=units, fusion=fusion, quorum=0.5
            )
            assert isinstance(group, FusedGroup)
            assert np.isfinite(group.rewards).all()
            assert np.isfinite([group.entropy, group.disagreement]).all()
            if isinstance(fusion, Weighted):
                found.append(group)
    quiet, loud = found
    assert (quiet.calibrated[:3] == loud.calibrated[:3]).all()
    moved = (loud.rewards - loud.rewards.mean()) - (quiet.rewards - quiet.rewards.mean())
    assert np.abs(moved).max() <= 4 * weights[3] * slopes[3] + 1e-9  # twice the limit of a deviation, two spreads
    lines = [
        ClientScore(client=name, status="ok", weight=float(w), calibrated=tuple(row.tolist()))
        for name, w, row in zip(NAMES, loud.weights, loud.calibrated, strict=True)
    ]
    finite({name: line.model_dump() for name, line in contributions("o", lines, 0.0).items()})


@given(bad=columns(), share=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_reviews_of_any_client_are_finite(bad: np.ndarray, share: float) -> None:
    inputs, _ = anchors()
    answered = np.flatnonzero(~np.isnan(bad).any(axis=1))
    digests = {row: hashlib.sha256(str(row).encode()).hexdigest() for row in answered.tolist()}
    vectors = {digest: inputs[row].astype(np.float32) for row, digest in digests.items()}
    pairs = {digest: (float(bad[row, 0]), float(bad[row, 1])) for row, digest in digests.items()}
    live = dict(list(pairs.items())[: int(share * len(pairs))])
    assert 0 < contradiction(pairs, live, vectors) <= 1
    raw = np.array(list(pairs.values()))
    units = fit_standardiser(raw)(raw)
    assert np.abs(units).max() <= 30
    differences = dict(zip(pairs, (units[:, 0] - units[:, 1]).tolist(), strict=True))
    found = _judged({"bad": QuarantineEvidence(differences=differences)}, vectors)
    assert 0 < found["bad"].p <= 1
