"""Periodic evaluation: one greedy response to each evaluation prompt, scored by the router, never trained on."""

from __future__ import annotations

import hashlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mor_core.datafiles import Prompt
from mor_core.wire import RewardRecord

from mor_trainer.groups.ledger import Issue
from mor_trainer.groups.traces import GroupTraces
from mor_trainer.prompts.source_prompts import SourcePrompts


@dataclass
class EvaluationRound:
    """Bookkeeping of one evaluation: a simpler ledger, for groups of one response that no step waits for."""

    run: str
    step: int
    version: int
    prompts: SourcePrompts
    deadline: float
    outstanding: dict[str, Issue] = field(default_factory=dict)
    results: dict[int, RewardRecord] = field(default_factory=dict)
    failed: int = 0

    def __post_init__(self) -> None:
        for index in range(len(self.prompts)):
            name = hashlib.sha256(f"{self.run}/evaluation/{self.step}/{index}".encode()).hexdigest()[:32]
            self.outstanding[name] = Issue(index, 0, self.deadline)

    def receive(self, record: RewardRecord) -> None:
        issue = self.outstanding.pop(record.group_id, None)
        if issue is not None:
            self.results[issue.number] = record

    def reissue(self, group_id: str, deadline: float, max_attempts: int) -> bool:
        """Issue a prompt once more; return ``False``, and count it as failed, after ``max_attempts``."""
        issue = self.outstanding[group_id]
        if issue.attempt + 1 >= max_attempts:
            del self.outstanding[group_id]
            self.failed += 1
            return False
        issue.attempt += 1
        issue.deadline = deadline
        return True

    @property
    def finished(self) -> bool:
        return not self.outstanding

    def summary(self) -> dict[str, Any]:
        """Summarise the results: mean rewards in logits, fused and by client, in all and by domain label."""
        by_domain: dict[str, list[RewardRecord]] = defaultdict(list)
        for index, record in self.results.items():
            by_domain[self.prompts.domains[index] or ""].append(record)
        records = list(self.results.values())
        return {
            "step": self.step,
            "version": self.version,
            "prompts": len(self.prompts),
            "answered": len(records),
            "failed": self.failed,
            **_means(records),
            "domains": {domain: _means(group) for domain, group in sorted(by_domain.items()) if domain},
        }


class Evaluations:
    """The current evaluation round, if any.

    Each round is reported once: when it is complete, or with what has arrived when the next one begins.
    """

    def __init__(
        self, run: str, max_attempts: int, traces: GroupTraces, report: Callable[[int, dict[str, Any]], None]
    ) -> None:
        self._run = run
        self._max_attempts = max_attempts
        self._traces = traces
        self._report = report
        self._round: EvaluationRound | None = None

    @property
    def outstanding(self) -> Mapping[str, Issue]:
        """Issues that have no result yet, by group; empty between rounds."""
        return {} if self._round is None else self._round.outstanding

    def begin(self, step: int, version: int, prompts: SourcePrompts, deadline: float) -> None:
        self._end()
        self._round = EvaluationRound(self._run, step, version, prompts, deadline)

    def prompt_of(self, issue: Issue) -> Prompt:
        assert self._round is not None, "only a round has issues"
        return self._round.prompts[issue.number]

    def row_of(self, issue: Issue) -> str:
        """Return the id of a prompt, without reading it."""
        assert self._round is not None, "only a round has issues"
        return self._round.prompts.ids[issue.number]

    def receive(self, record: RewardRecord) -> None:
        """Record the result of an outstanding group."""
        assert self._round is not None, "only a round has issues"
        self._round.receive(record)
        self._traces.ended(record.group_id, "evaluated")
        self._end_if_finished()

    def reissue(self, group_id: str, deadline: float, reason: str) -> bool:
        """Issue an outstanding group once more; return ``False``, and count it as failed, after the last attempt."""
        assert self._round is not None, "only a round has issues"
        issued = self._round.reissue(group_id, deadline, self._max_attempts)
        if not issued:
            self._traces.ended(group_id, "dropped", reason)
        self._end_if_finished()
        return issued

    def _end_if_finished(self) -> None:
        if self._round is not None and self._round.finished:
            self._end()

    def _end(self) -> None:
        if self._round is not None:
            self._report(self._round.step, self._round.summary())
            for group_id in self._round.outstanding:
                self._traces.ended(group_id, "unfinished")
            self._round = None


def _means(records: Sequence[RewardRecord]) -> dict[str, Any]:
    scores: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for score in record.clients:
            values = score.calibrated or score.standardised
            if values:
                scores[score.client].append(values[0])
    return {
        "reward": statistics.fmean(record.rewards[0] for record in records) if records else None,
        "clients": {client: statistics.fmean(values) for client, values in sorted(scores.items())},
        "response_length": (
            statistics.fmean(len(record.rollout.responses[0]) for record in records) if records else None
        ),
    }
