"""Periodic evaluation: one greedy response to each evaluation prompt, scored by the router, never trained on."""

from __future__ import annotations

import hashlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from mor_core.datafiles import Prompt
from mor_core.evaluated_steps import EvaluatedStep
from mor_core.wire import RewardRecord
from pydantic import BaseModel

from mor_trainer.groups.ledger import Issue
from mor_trainer.groups.traces import GroupTraces
from mor_trainer.prompts.source_prompts import SourcePrompts


class EvaluatedPrompt(BaseModel):
    """Result of one evaluation prompt."""

    reward: float
    clients: dict[str, float]
    """Client -> its score."""
    response_length: int
    """Characters."""
    gate_version: int | None = None
    """Gate version that scored it; unknown in a checkpoint of an earlier version."""

    @classmethod
    def of(cls, record: RewardRecord) -> Self:
        scores = {score.client: score.calibrated or score.standardised for score in record.clients}
        clients = {client: values[0] for client, values in scores.items() if values}
        return cls(
            reward=record.rewards[0],
            clients=clients,
            response_length=len(record.rollout.responses[0]),
            gate_version=record.gate_version,
        )


class EvaluationState(BaseModel):
    """The part of a checkpoint that continues an evaluation."""

    step: int
    version: int
    attempts: dict[int, int]
    """Earlier issues of each prompt without a result, by its index."""
    results: dict[int, EvaluatedPrompt]
    failed: int


@dataclass
class EvaluationRound:
    """Bookkeeping of one evaluation: a simpler ledger, for groups of one response that no step waits for."""

    run: str
    step: int
    version: int
    prompts: SourcePrompts
    deadline: float
    outstanding: dict[str, Issue] = field(default_factory=dict)
    results: dict[int, EvaluatedPrompt] = field(default_factory=dict)
    failed: int = 0

    def __post_init__(self) -> None:
        self._issue(dict.fromkeys(range(len(self.prompts)), 0))

    def _issue(self, attempts: Mapping[int, int]) -> None:
        for index, attempt in attempts.items():
            name = hashlib.sha256(f"{self.run}/evaluation/{self.step}/{index}".encode()).hexdigest()[:32]
            self.outstanding[name] = Issue(index, attempt, self.deadline)

    def restore(self, state: EvaluationState) -> None:
        """Continue from a checkpoint: the prompts without a result are outstanding."""
        self.results, self.failed, self.outstanding = dict(state.results), state.failed, {}
        self._issue(state.attempts)

    def state(self) -> EvaluationState:
        attempts = {issue.number: issue.attempt for issue in self.outstanding.values()}
        return EvaluationState(
            step=self.step, version=self.version, attempts=attempts, results=self.results, failed=self.failed
        )

    def receive(self, record: RewardRecord) -> None:
        issue = self.outstanding.pop(record.group_id, None)
        if issue is not None:
            self.results[issue.number] = EvaluatedPrompt.of(record)

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
        by_domain: dict[str, list[EvaluatedPrompt]] = defaultdict(list)
        for index, result in self.results.items():
            by_domain[self.prompts.domains[index] or ""].append(result)
        results = list(self.results.values())
        gates = sorted({result.gate_version for result in results if result.gate_version is not None})
        return {
            "step": self.step,
            "version": self.version,
            "gate_version": gates[-1] if gates else None,
            "gate_versions": gates,
            "prompts": len(self.prompts),
            "answered": len(results),
            "failed": self.failed,
            **_means(results),
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
        self.evaluated: list[EvaluatedStep] = []
        """Finished evaluations, oldest first."""

    @property
    def outstanding(self) -> Mapping[str, Issue]:
        """Issues that have no result yet, by group; empty between rounds."""
        return {} if self._round is None else self._round.outstanding

    def begin(self, step: int, version: int, prompts: SourcePrompts, deadline: float) -> None:
        self._end()
        self._round = EvaluationRound(self._run, step, version, prompts, deadline)

    def restore(self, state: EvaluationState, prompts: SourcePrompts, deadline: float) -> None:
        """Continue the round of a checkpoint."""
        self._round = EvaluationRound(self._run, state.step, state.version, prompts, deadline)
        self._round.restore(state)
        self._end_if_finished()

    def state(self) -> EvaluationState | None:
        """Return the state of the current round for a checkpoint."""
        return None if self._round is None else self._round.state()

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
            summary = self._round.summary()
            self._report(self._round.step, summary)
            if (evaluated := EvaluatedStep.of(summary)) is not None:
                self.evaluated.append(evaluated)
            for group_id in self._round.outstanding:
                self._traces.ended(group_id, "unfinished")
            self._round = None


def _means(results: Sequence[EvaluatedPrompt]) -> dict[str, Any]:
    scores: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for client, score in result.clients.items():
            scores[client].append(score)
    return {
        "reward": statistics.fmean(result.reward for result in results) if results else None,
        "clients": {client: statistics.fmean(values) for client, values in sorted(scores.items())},
        "response_length": statistics.fmean(result.response_length for result in results) if results else None,
    }
