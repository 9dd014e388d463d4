"""Order of the prompts of a run: epochs of each source, and what earlier versions stored."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mor_core.errors import Invalid
from mor_core.runs import RunSpec
from mor_trainer.groups.ledger import Ledger, LedgerState
from mor_trainer.groups.prompt_order import DrawnSource, PromptOrder

from tests.trainer.records import order_of

SOURCES = (
    DrawnSource("easy", 5, [(0, 3.0), (20, 0.0)], shuffled=False),
    DrawnSource("hard", 40, [(0, 0.0), (20, 3.0)]),
    DrawnSource("tiny", 1),
)


def mixed() -> PromptOrder:
    return PromptOrder(SOURCES, seed=7, draws_per_step=4)


def test_a_run_with_one_file_draws_as_it_always_did() -> None:
    """Runs of earlier versions resume with the same groups: this is their order and their ids."""
    ledger: Ledger[None] = Ledger("r", PromptOrder([DrawnSource("", 11)], seed=3, draws_per_step=4), 0, 3)
    for number in range(40):
        epoch, position = divmod(number, 11)
        order = list(range(11))
        random.Random(f"3/{epoch}").shuffle(order)
        assert ledger.prompt_of(number) == order[position]
        assert ledger.group_id(number) == hashlib.sha256(f"r/{epoch}/{order[position]}".encode()).hexdigest()[:32]
    assert ledger.group_id(12) == "54d3b0dac4e92602344d9e160023fc9f"


def test_the_state_that_an_earlier_version_stored_is_restored() -> None:
    stored = {
        "prompts": 11, "cursor": 14, "under_way": {"9": 0, "12": 1}, "applied": 11, "dropped": 1, "retried": 2,
        "skipped": 0, "lost": [3], "versions": [4],
    }  # fmt: skip
    ledger: Ledger[None] = Ledger("r", order_of(11), 0, 3)
    ledger.restore(LedgerState.model_validate_json(json.dumps(stored)), deadline=1.0)
    assert {issue.number for issue in ledger.outstanding.values()} == {9, 12}
    state = ledger.state()
    assert state.sources == {}
    assert state.model_dump(include=stored.keys() - {"versions", "under_way"}) == {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored.items()
        if name not in ("versions", "under_way")
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400))
def test_each_epoch_of_a_source_has_each_of_its_rows_once(draws: int) -> None:
    order = mixed()
    drawn = [order.draw(number) for number in range(draws)]
    assert len({(epoch, row) for _, epoch, row in drawn}) == draws, "so each group has an id of its own"
    for source, rows in enumerate((range(5), range(5, 45), range(45, 46))):
        wanted = list(rows)
        own = [draw for draw in drawn if draw.source == source]
        assert [draw.epoch for draw in own] == [place // len(wanted) for place in range(len(own))]
        for begin in range(0, len(own) - len(wanted) + 1, len(wanted)):
            found = [draw.row for draw in own[begin : begin + len(wanted)]]
            assert (found if source == 0 else sorted(found)) == wanted, "easy is drawn in the order of its file"
        assert (order.drawn(source, draws), order.epochs(source, draws)) == (len(own), len(own) / len(wanted))


def test_sources_of_one_length_are_shuffled_differently() -> None:
    order = order_of(30, 30)
    first, second = ([row % 30 for s, _, row in map(order.draw, range(60)) if s == source] for source in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), st.integers(0, 60))
def test_a_resumed_run_draws_the_same_groups(cut: int, more: int) -> None:
    whole: Ledger[None] = Ledger("r", mixed(), 0, 3)
    straight = [whole.group_id(issue.number) for issue in whole.issue(cut + more, 1.0)]
    begun: Ledger[None] = Ledger("r", mixed(), 0, 3)
    begun.issue(cut, 1.0)
    state = LedgerState.model_validate_json(begun.state().model_dump_json())
    resumed: Ledger[None] = Ledger("r", mixed(), 0, 3)
    resumed.restore(state, 1.0)
    resumed.issue(more, 1.0)
    assert list(resumed.outstanding) == straight


def test_other_rows_or_sources_than_those_of_the_checkpoint_are_refused() -> None:
    state = Ledger[None]("r", order_of(4, 5), 0, 3).state()
    for order, message in (
        (order_of(4, 6), "source 'source-1' has 6 rows, the checkpoint was written with 5; restore the file"),
        (order_of(5, 4), "source 'source-0' has 5 rows"),
        (order_of(9), r"the run has the sources \[\], the checkpoint was written with \['source-0', 'source-1'\]"),
        (order_of(4, 5, 6), "the run has the sources"),
    ):
        with pytest.raises(Invalid, match=message):
            Ledger[None]("r", order, 0, 3).restore(state, 1.0)


def test_the_order_of_a_run_follows_its_specification() -> None:
    spec = RunSpec.model_validate(
        {
            "name": "r", "model": "/m", "seed": 7, "groups_per_step": 4,
            "sources": [
                {"name": "easy", "prompts": "a", "order": "file",
                 "schedule": [{"step": 0, "weight": 3}, {"step": 20, "weight": 0}]},
                {"name": "hard", "prompts": "b", "schedule": [{"step": 0, "weight": 0}, {"step": 20, "weight": 3}]},
                {"name": "tiny", "prompts": "c"},
            ],
        }
    )  # fmt: skip
    order = PromptOrder.of_run(spec, (5, 40, 1))
    assert [order.draw(number) for number in range(200)] == [mixed().draw(number) for number in range(200)]
    sources = Counter(order.draw(number).source for number in range(80, 480))
    assert sources == {1: 300, 2: 100}, "easy has faded out after step 20"
