"""The ledger under any interleaving of losses, duplicates, re-issues, new versions and crashes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mor_core.errors import Invalid
from mor_trainer.groups.ledger import Ledger, Receipt

from tests.trainer.records import order_of

STEP = 3
ACTIONS = st.lists(
    st.sampled_from(["issue", "return", "return", "duplicate", "late", "lose", "version", "take", "take", "crash"]),
    min_size=30,
    max_size=150,
)


def ledger_of(staleness: int = 1, attempts: int = 3, prompts: int = 7) -> Ledger[str]:
    ledger: Ledger[str] = Ledger("run", order_of(prompts), staleness, attempts)
    ledger.advance_version(0)
    return ledger


@settings(max_examples=200, deadline=None)
@given(ACTIONS, st.integers(0, 2), st.data())
def test_each_group_is_applied_once_whatever_happens(actions: list[str], staleness: int, data: st.DataObject) -> None:
    ledger = ledger_of(staleness)
    version, applied, skipped = 0, Counter[int](), Counter[int]()
    saved = (ledger.state(), applied.copy(), skipped.copy(), version)
    seen: list[tuple[str, int]] = []
    for action in actions:
        waiting = sorted(ledger.outstanding)
        if action == "issue":
            ledger.issue(ledger.room(STEP), deadline=1.0)
        elif action == "return" and waiting:
            group = data.draw(st.sampled_from(waiting))
            sampled_by = data.draw(st.integers(max(0, version - 3), version))
            seen.append((group, sampled_by))
            receipt = ledger.receive(group, sampled_by, group)
            assert receipt is (Receipt.accepted if ledger.staleness(sampled_by) is not None else Receipt.stale)
        elif action in ("duplicate", "late") and seen:
            group, sampled_by = data.draw(st.sampled_from(seen))
            outstanding = group in ledger.outstanding
            receipt = ledger.receive(group, sampled_by, group)
            assert outstanding or receipt is Receipt.duplicate
        elif action == "lose" and waiting:
            ledger.reissue(data.draw(st.sampled_from(waiting)), deadline=1.0)
        elif action == "version":
            version += 1
            ledger.advance_version(version)
        elif action == "take":
            taken, _ = ledger.take(STEP, deadline=1.0)
            assert len(taken) in (0, STEP)
            zero_variance = data.draw(st.integers(0, len(taken)))
            ledger.skip_taken(zero_variance)
            for place, (number, group, stale) in enumerate(taken):
                assert ledger.group_id(number) == group
                assert stale <= staleness
                (skipped if place < zero_variance else applied)[number] += 1
            if taken:
                version += 1
                ledger.advance_version(version)
                saved = (ledger.state(), applied.copy(), skipped.copy(), version)
        elif action == "crash":  # back to the last checkpoint; versions go on above everything that was published
            state, applied, skipped, _ = saved
            applied, skipped, version = applied.copy(), skipped.copy(), version + 1
            ledger = ledger_of(staleness)
            ledger.restore(state, deadline=1.0)
            ledger.advance_version(version)
        assert max((applied + skipped).values(), default=0) <= 1
        assert (ledger.applied, ledger.skipped) == (sum(applied.values()), sum(skipped.values()))
        under_way = {issue.number for issue in ledger.outstanding.values()} | set(ledger.ready)
        assert len(under_way) == len(ledger.outstanding) + len(ledger.ready)
        assert not under_way & set(applied + skipped)
        settled = ledger.applied + ledger.skipped + ledger.dropped
        assert ledger.cursor == len(under_way) + settled, "every group is accounted for"
        assert len(under_way) <= STEP * (1 + staleness)


def test_the_order_and_the_ids_depend_on_seed_and_number_only() -> None:
    ledger = ledger_of()
    drawn = [ledger.prompt_of(number) for number in range(14)]
    assert sorted(drawn[:7]) == sorted(drawn[7:]) == list(range(7))
    assert drawn[:7] != drawn[7:]
    assert len({ledger.group_id(number) for number in range(14)}) == 14
    assert ledger_of().group_id(9) == ledger.group_id(9)


def test_a_group_is_dropped_after_its_last_attempt_and_replaced() -> None:
    ledger = ledger_of(staleness=0, attempts=3)
    ledger.issue(ledger.room(2), deadline=1.0)
    group = next(iter(ledger.outstanding))
    assert ledger.reissue(group, 2.0) is not None
    assert ledger.overdue(1.5) == [other for other in ledger.outstanding if other != group]
    assert ledger.reissue(group, 2.0) is not None
    assert ledger.reissue(group, 2.0) is None
    assert (ledger.dropped, ledger.retried, ledger.room(2)) == (1, 2, 1)
    assert ledger.receive(group, 0, "late") is Receipt.duplicate


def test_groups_that_become_stale_while_they_wait_are_sampled_again() -> None:
    ledger = ledger_of(staleness=0)
    first, second = (ledger.group_id(issue.number) for issue in ledger.issue(2, deadline=1.0))
    assert ledger.receive(first, 0, "a") is Receipt.accepted
    ledger.advance_version(1)
    taken, again = ledger.take(2, deadline=5.0)
    assert taken == []
    assert [ledger.group_id(issue.number) for issue in again] == [first]
    assert ledger.receive(second, 0, "b") is Receipt.stale
    assert ledger.receive(first, 1, "a") is Receipt.accepted


def test_versions_of_a_lost_lineage_are_stale() -> None:
    ledger = ledger_of(staleness=2)
    ledger.issue(1, deadline=1.0)
    state = ledger.state()
    resumed = ledger_of(staleness=2)
    resumed.restore(state, deadline=1.0)
    resumed.advance_version(7)  # 1 to 6 were published by an attempt that died
    group = next(iter(resumed.outstanding))
    assert resumed.receive(group, 6, "x") is Receipt.stale
    assert resumed.staleness(7) == 0
    assert resumed.receive(group, 7, "x") is Receipt.accepted


def test_a_dropped_group_can_be_reopened_once_and_after_a_restart() -> None:
    ledger = ledger_of(staleness=0)
    first, second = (ledger.group_id(issue.number) for issue in ledger.issue(2, deadline=1.0))
    assert not ledger.reopen(first, 2.0), "under way"
    ledger.drop(first)
    restored = ledger_of(staleness=0)
    restored.restore(ledger.state(), deadline=1.0)
    for found in (ledger, restored):
        assert found.reopen(first, 2.0)
        assert not found.reopen(first, 2.0)
        assert (found.dropped, set(found.outstanding)) == (0, {first, second})


def test_groups_that_a_step_took_can_be_put_back() -> None:
    ledger = ledger_of(staleness=0)
    for issue in ledger.issue(2, deadline=1.0):
        ledger.receive(ledger.group_id(issue.number), 0, "x")
    before = ledger.state()
    taken, _ = ledger.take(2, deadline=1.0)
    for number, brought, _ in taken:
        ledger.put_back(number, brought, 0, 0)
    assert ledger.state() == before
    ledger.take(2, deadline=1.0)
    ledger.reject_taken(taken[0][0])
    assert (ledger.applied, ledger.dropped) == (1, 1)


@pytest.mark.parametrize("staleness", [0, 2])
def test_the_number_of_groups_under_way_is_bounded(staleness: int) -> None:
    ledger = ledger_of(staleness)
    ledger.issue(ledger.room(STEP), deadline=1.0)
    assert ledger.room(STEP) == 0
    assert len(ledger.outstanding) == STEP * (1 + staleness)
    for group in sorted(ledger.outstanding):
        ledger.receive(group, 0, group)
    ledger.take(STEP, deadline=1.0)
    assert ledger.room(STEP, held=STEP - 1) == 1, "one of the step's groups was not kept"
    assert ledger.room(STEP, held=STEP) == 0


def test_no_group_is_issued_for_a_step_after_the_last() -> None:
    ledger = ledger_of(staleness=2)
    assert ledger.room(STEP, steps_left=2) == 2 * STEP
    ledger.issue(2 * STEP, deadline=1.0)
    assert ledger.room(STEP, steps_left=2) == 0
    assert ledger.room(STEP, held=STEP, steps_left=1) == 0


def test_a_changed_prompts_file_is_refused() -> None:
    state = ledger_of(prompts=7).state()
    with pytest.raises(Invalid, match="has 8 rows, the checkpoint was written with 7; restore the file"):
        ledger_of(prompts=8).restore(state, deadline=1.0)
