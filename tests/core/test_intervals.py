"""The interval of a proportion agrees with published values."""

from __future__ import annotations

import pytest
from mor_core.intervals import Z_95_ONE_SIDED, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_values(successes: int, trials: int, low: float, high: float) -> None:
    """Newcombe 1998, table I, method 3."""
    assert wilson(successes, trials) == pytest.approx((low, high), abs=6e-5)


def test_a_one_sided_limit_is_nearer() -> None:
    assert wilson(81, 263)[0] < wilson(81, 263, Z_95_ONE_SIDED)[0] < 81 / 263


def test_nothing_tried_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        wilson(0, 0)
