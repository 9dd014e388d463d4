"""Opposition of a client to all others together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mor_router.mathematics.opposition import opposes, stakes

_NOBODY = np.zeros(3, dtype=bool)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-1e3, 1e3))
def test_who_opposes_depends_on_no_level_and_no_common_scale(seed: int, scale: float, level: float) -> None:
    parts = np.random.default_rng(seed).normal(size=(3, 6))
    assert opposes(scale * parts + level, _NOBODY).tolist() == opposes(parts, _NOBODY).tolist()


def test_only_a_client_against_all_others_opposes_and_nobody_by_opposing_a_suspect() -> None:
    truth = np.array([3.0, 1.0, 0.0, -4.0])
    parts = np.stack([0.3 * truth, 0.3 * truth, -0.2 * truth])
    assert opposes(parts, _NOBODY).tolist() == [False, False, True]
    parts = np.stack([0.3 * truth, 0.01 * truth, -0.5 * truth])
    assert opposes(parts, _NOBODY).tolist() == [True, True, True]
    assert opposes(parts, np.array([False, False, True])).tolist() == [False, False, True]


def test_the_stake_is_less_for_little_influence_and_beside_others_without_any() -> None:
    assert stakes(np.full(4, 0.25), np.zeros(4, dtype=bool)).tolist() == [1, 1, 1, 1]
    assert stakes(np.array([0.55, 0.4, 0.05]), _NOBODY)[2] < 0.03
    assert stakes(np.array([0.95, 0.025, 0.025]), _NOBODY)[0] < 0.21
    assert stakes(np.array([0.5, 0.5, 0.0]), np.array([True, False, False])).tolist() == [1, 0, 0]
    assert stakes(np.zeros(3), _NOBODY).tolist() == [0, 0, 0]
