"""Circuit and wait budget of one client: what they cost is bounded for every pattern of failures."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mor_router.clients.circuit import Circuit, CircuitLimits, CircuitOpen
from mor_router.clients.wait_budget import WaitBudget

LIMITS = CircuitLimits(
    calls=20, window_s=300, least_calls=5, failure_share=0.5, open_s=15, longest_open_s=600, trials=3
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def call(circuit: Circuit, failure: float | None) -> bool:
    """Make a call; return whether it was admitted."""
    try:
        with circuit.call() as outcome:
            outcome.failure = failure
    except CircuitOpen:
        return False
    return True


def test_every_fifth_good_call_does_not_keep_it_closed() -> None:
    circuit = Circuit(LIMITS, Clock())
    admitted = [call(circuit, float(number % 5 != 0)) for number in range(20)]
    assert admitted.count(True) == 5
    assert circuit.state == "open"


def test_three_failures_of_ten_leave_it_closed() -> None:
    clock = Clock()
    circuit = Circuit(LIMITS, clock)
    for number in range(200):
        clock.now += 1
        assert call(circuit, float(number % 10 in (2, 5, 8)))
    assert circuit.failure_share == pytest.approx(0.3)


def test_it_closes_after_good_trials_one_at_a_time_and_opens_for_longer_each_time() -> None:
    clock = Clock()
    circuit = Circuit(LIMITS, clock)
    waits = []
    for _ in range(9):
        while call(circuit, 1.0):
            pass
        began = clock.now
        while circuit.state == "open":
            clock.now += 0.5
        waits.append(clock.now - began)
        with circuit.call() as first:
            assert not call(circuit, 0.0)
            first.failure = 0.0
        assert call(circuit, 0.0)
        assert circuit.state == "half_open"
        assert call(circuit, 0.0)
        assert circuit.state == "closed"
    for wait, mean in zip(waits, (15, 30, 60, 120, 240, 480, 600, 600, 600), strict=True):
        assert 0.8 * mean <= wait <= 1.2 * mean + 0.5
    for _ in range(20):
        call(circuit, 0.0)  # a whole good window
    while call(circuit, 1.0):
        pass
    clock.now += 1.2 * 15
    assert circuit.state == "half_open"


def test_a_cancelled_trial_makes_room_for_another_and_late_outcomes_do_not_count() -> None:
    clock = Clock()
    circuit = Circuit(LIMITS, clock)
    with circuit.call() as early:
        for _ in range(5):
            call(circuit, 1.0)
        early.failure = 0.0  # of a call that began before the circuit opened
    assert circuit.state == "open"
    clock.now += 20
    assert call(circuit, None)
    assert circuit.state == "half_open"
    assert call(circuit, 0.0)


@settings(deadline=None)
@given(
    pattern=st.lists(st.sampled_from([0.0, 0.4, 0.6, 1.0]), min_size=1, max_size=40),
    pause_s=st.sampled_from([0.01, 1.0, 7.0]),
)
def test_wasted_calls_are_bounded_for_every_pattern(pattern: list[float], pause_s: float) -> None:
    """A client whose pattern fails at least in half of its calls."""
    clock = Clock()
    circuit, wasted, good, number = Circuit(LIMITS, clock), 0.0, 0.0, 0
    while clock.now < 3600:
        failure = pattern[number % len(pattern)]
        if call(circuit, failure):
            number += 1
            wasted += failure
            good += 1 - failure
            clock.now += pause_s
        else:
            clock.now += 5
        if number > 2000:
            break
    openings = 3600 / 600 + 8  # at the longest wait, and before it is reached
    assert wasted <= good + openings * (LIMITS.calls + LIMITS.trials)


@settings(deadline=None)
@given(
    waits=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(0, 100)), max_size=60),
    share=st.sampled_from([0.05, 0.1, 0.5]),
)
def test_no_pattern_of_failures_makes_groups_wait_for_longer_than_the_budget(
    waits: list[tuple[float, float, float]], share: float
) -> None:
    clock = Clock()
    budget = WaitBudget(300, share, clock)
    waited, until, longest = 0.0, 0.0, 0.0
    for pause, past, coming in waits:
        clock.now += pause
        if budget.left_s() <= 0:
            continue  # groups no longer wait
        budget.spend(clock.now - past, clock.now + coming)
        waited += max(0.0, clock.now + coming - max(clock.now - past, until))
        until, longest = max(until, clock.now + coming), max(longest, past + coming)
    assert waited <= 300 + share * clock.now + longest + 1e-6


def test_waits_at_the_same_time_count_once_and_time_refills_the_budget() -> None:
    clock = Clock()
    budget = WaitBudget(100, 0.1, clock)
    clock.now = 50
    for _ in range(4):
        budget.spend(20, 60)
    assert budget.left_s() == pytest.approx(60)
    clock.now = 250
    assert budget.left_s() == pytest.approx(80)
    clock.now = 1e6
    assert budget.left_s() == 100
