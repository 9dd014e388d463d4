"""Trace of a group in the trainer: its beginning, and every way in which it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from mor_core.wire import RewardRecord, TokenBlock
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.groups.traces import GroupTraces

from tests.collector import Collector, traced
from tests.trainer.records import rollout_of
from tests.trainer.stages import reward_record, until


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with traced("mor-trainer-worker", monkeypatch) as collector:
        yield collector


def scored(traces: GroupTraces, group_id: str) -> ScoredGroup:
    """A group that was issued and came back."""
    rollout = rollout_of(group_id)
    issued = traces.issued(rollout.prompt)
    record: RewardRecord = reward_record(rollout, (1.0,)).model_copy(update={"trace": issued.trace})
    tokens = TokenBlock(prompt_token_ids=(), response_token_ids=(), response_logprobs=())
    return ScoredGroup(number=0, staleness=2, record=record, tokens=tokens)


def test_a_group_has_one_span_for_all_attempts_with_its_outcome(collector: Collector) -> None:
    traces = GroupTraces()
    prompt = rollout_of("again").prompt
    assert traces.issued(prompt).trace == traces.issued(prompt.model_copy(update={"attempt": 1})).trace
    traces.ended("again", "dropped", "not back within 4 s")
    assert traces.issued(rollout_of("left").prompt).trace
    trained, skipped = scored(traces, "trained"), scored(traces, "skipped")
    with traces.updating("r", 7, [trained], [skipped]):
        begun = time.time()
    traces.close()
    traces.ended("trained", "dropped")  # long over: nothing happens
    until(lambda: len(collector.named("group")) == 4, 10, "the spans arrive")
    groups = {span.attributes["mor.group"]: span for span in collector.named("group")}
    assert {name: span.attributes["mor.outcome"] for name, span in groups.items()} == {
        "again": "dropped", "left": "unfinished", "trained": "trained", "skipped": "skipped",
    }  # fmt: skip
    assert [name for name, span in groups.items() if span.failed] == ["again"]
    [update], [step] = collector.named("update"), collector.named("step")
    assert (update.parent, update.trace) == (groups["trained"].id, groups["trained"].trace)
    assert update.attributes == {"mor.step": 7, "mor.staleness": 2}
    assert update.began <= begun * 1e9 <= update.ended
    assert (update.links, step.links) == ((step.id,), (groups["trained"].id,))


def test_an_update_that_fails_leaves_its_groups_under_way(collector: Collector) -> None:
    traces = GroupTraces()
    taken = scored(traces, "g")
    with pytest.raises(MemoryError), traces.updating("r", 1, [taken], []):
        raise MemoryError
    traces.close()
    until(lambda: bool(collector.named("group")), 10, "the span arrives")
    assert collector.named("group")[0].attributes["mor.outcome"] == "unfinished"
    assert collector.named("step")[0].failed and not collector.named("update")


def test_without_tracing_records_carry_none() -> None:
    traces = GroupTraces()
    taken = scored(traces, "g")
    assert taken.record.trace is None
    with traces.updating("r", 1, [taken], []):
        pass
