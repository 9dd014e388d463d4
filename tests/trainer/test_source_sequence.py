"""Sources are drawn exactly as often as their weights say, at every draw, and the same wherever one begins to read."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st
from mor_trainer.algorithm.source_sequence import SourceSequence

Points = list[tuple[int, float]]

WEIGHTS = st.one_of(st.floats(1e-4, 1e4), st.sampled_from([1e-4, 0.1, 1.0, 3.0, 1e4]))
CONSTANT = WEIGHTS.map(lambda weight: [(0, weight)])
SCHEDULE = st.dictionaries(st.integers(0, 40), st.one_of(st.just(0.0), WEIGHTS), min_size=1, max_size=5).map(
    lambda points: sorted(points.items())
)
SOURCES = st.tuples(CONSTANT, st.lists(st.one_of(CONSTANT, SCHEDULE), max_size=7)).map(
    lambda found: [found[0], *found[1]]
)


def weight_at(points: Points, step: int) -> Fraction:
    if step <= points[0][0]:
        return Fraction(points[0][1])
    for (left, low), (right, high) in pairwise(points):
        if step <= right:
            return Fraction(low) + (Fraction(high) - Fraction(low)) * Fraction(step - left, right - left)
    return Fraction(points[-1][1])


@settings(max_examples=30, deadline=None)
@given(SOURCES, st.integers(1, 9))
@example([[(0, 1.0)], *[[(0, 0.02)]] * 50], 4)  # the greedy choice of the largest deficit fails here
@example([[(0, 1.0)], [(1, 2.0), (9, 0.0), (10, 1.0)]], 1)  # a rest of the second is drawn in step 9
@example([[(0, 1.0), (30, 0.0)], [(0, 0.0), (30, 1.0)], [(10, 0.0), (11, 5.0), (12, 0.0)]], 3)
def test_each_count_is_its_expectation_rounded_down_or_up(schedules: list[Points], draws_per_step: int) -> None:
    sequence = SourceSequence(schedules, draws_per_step)
    counts = [0] * len(schedules)
    total = [Fraction(0)] * len(schedules)
    for number in range(130):
        weights = [weight_at(points, number // draws_per_step) for points in schedules]
        total = [before + weight / sum(weights) for before, weight in zip(total, weights, strict=True)]
        drawn = sequence.source(number)
        assert weights[drawn] > 0 or total[drawn] > counts[drawn], "without weight, only what earlier steps owe it"
        counts[drawn] += 1
        for source, wanted in enumerate(total):
            assert math.floor(wanted - Fraction(1, 10**6)) <= counts[source] <= math.ceil(wanted + Fraction(1, 10**6))
            assert sequence.count(source, number + 1) == counts[source]
            assert abs(sequence.expected(source, number + 1) - wanted) < 1e-6


@settings(max_examples=30, deadline=None)
@given(SOURCES, st.lists(st.integers(0, 5000), min_size=1, max_size=20))
def test_a_draw_is_the_same_in_whatever_order_draws_are_read(schedules: list[Points], numbers: list[int]) -> None:
    straight = SourceSequence(schedules, 4)
    sources = [straight.source(number) for number in range(max(numbers) + 1)]
    jumping = SourceSequence(schedules, 4)
    for number in numbers:
        assert jumping.count(0, number) == sources[:number].count(0)
        assert jumping.source(number) == sources[number]


def test_whole_shares_repeat_exactly() -> None:
    sequence = SourceSequence([[(0, 5.0)], [(0, 3.0)], [(0, 2.0)]], 16)
    drawn = [sequence.source(number) for number in range(1000)]
    for begin in range(0, 1000, 10):
        assert [drawn[begin : begin + 10].count(source) for source in range(3)] == [5, 3, 2]


def test_a_source_without_weight_is_not_drawn_until_it_has_one() -> None:
    sequence = SourceSequence([[(0, 1.0)], [(5_000, 0.0), (5_001, 1.0)]], 2)
    assert sequence.count(1, 10_002) == 0
    assert sequence.count(1, 10_006) == 2
