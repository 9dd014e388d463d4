"""Nobody keeps another from what callers share, whoever comes first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from mor_core.fair_share import FairShare
from mor_core.paging import page

STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 12), st.booleans()), max_size=60)


@given(STEPS, st.integers(1, 12))
def test_a_caller_within_its_share_is_always_admitted_and_the_total_is_bounded(
    steps: list[tuple[str, int, bool]], bound: int
) -> None:
    shared = FairShare(bound)
    held: Counter[str] = Counter()
    for caller, units, gives_back in steps:
        if gives_back:
            shared.give_back(caller, held.pop(caller, 0))
            continue
        within = held[caller] + units <= shared.share(caller)
        room = shared.total + units <= bound
        taken = shared.take(caller, units)
        assert taken == (within or room)
        held[caller] += units * taken
        assert shared.total == held.total()
        assert shared.total <= bound * (1 + 1 / 2 + 1 / 3) + 2  # a share is at least 1


def test_one_caller_may_use_all_of_it_while_no_other_needs_it() -> None:
    shared = FairShare(10)
    assert shared.take("greedy", 10)
    assert not shared.take("greedy")
    assert shared.take("modest", 5)
    assert not shared.take("modest")
    shared.give_back("greedy", 10)
    assert shared.take("modest", 5)


@given(st.lists(st.integers(), unique=True), st.integers(1, 10))
def test_pages_follow_each_other_without_gap_or_repetition(entries: list[int], limit: int) -> None:
    found: list[int] = []
    while part := page(entries, str, str(found[-1]) if found else None, limit):
        assert len(part) <= limit
        found += part
    assert found == entries
