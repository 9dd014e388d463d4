"""Opposition of a client to all others together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mor_router.mathematics.opposition import cosines, stakes

_NOBODY = np.zeros(3, dtype=bool)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-1e3, 1e3))
def test_agreement_depends_on_no_level_and_no_common_scale(seed: int, scale: float, level: float) -> None:
    parts = np.random.default_rng(seed).normal(size=(3, 6))
    np.testing.assert_allclose(cosines(scale * parts + level, _NOBODY), cosines(parts, _NOBODY), atol=1e-6)


def test_only_a_client_against_all_others_opposes_and_nobody_by_opposing_a_suspect() -> None:
    truth = np.array([3.0, 1.0, 0.0, -4.0])
    parts = np.stack([0.3 * truth, 0.3 * truth, -0.2 * truth])
    assert cosines(parts, _NOBODY).round(6).tolist() == [1, 1, -1]
    parts = np.stack([0.3 * truth, 0.01 * truth, -0.5 * truth])
    assert cosines(parts, _NOBODY).round(6).tolist() == [-1, -1, -1]
    assert cosines(parts, np.array([False, False, True])).round(6).tolist() == [1, 1, -1]


def test_a_client_that_distinguishes_nothing_neither_agrees_nor_disagrees() -> None:
    parts = np.array([[1.0, 2.0], [3.0, 3.0], [0.0, 1.0]])
    assert np.isnan(cosines(parts, _NOBODY)).tolist() == [False, True, False]


def test_the_stake_is_less_for_little_influence_and_beside_others_without_any() -> None:
    assert stakes(np.full(4, 0.25), np.zeros(4, dtype=bool)).tolist() == [1, 1, 1, 1]
    assert stakes(np.array([0.55, 0.4, 0.05]), _NOBODY)[2] < 0.03
    assert stakes(np.array([0.95, 0.025, 0.025]), _NOBODY)[0] < 0.21
    assert stakes(np.array([0.5, 0.5, 0.0]), np.array([True, False, False])).tolist() == [1, 0, 0]
    assert stakes(np.zeros(3), _NOBODY).tolist() == [0, 0, 0]
