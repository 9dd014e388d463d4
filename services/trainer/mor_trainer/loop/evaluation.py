"""Periodic evaluation: every evaluation prompt is answered greedily and scored by the router, never trained on."""

from __future__ import annotations

import hashlib
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mor_core.datafiles import Prompt
from mor_core.wire import RewardRecord

from mor_trainer.loop.ledger import Issue


@dataclass
class Round:
    """One evaluation: pure bookkeeping, like the ledger's but for groups of one that nothing depends on."""

    run: str
    step: int
    version: int
    prompts: Sequence[Prompt]
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

    def again(self, group_id: str, deadline: float, max_attempts: int) -> bool:
        """Whether the prompt is asked again; otherwise it counts as failed."""
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
        """Mean rewards, fused and for each client, over all prompts and for each domain label; logits."""
        by_domain: dict[str, list[RewardRecord]] = defaultdict(list)
        for index, record in self.results.items():
            by_domain[self.prompts[index].domain or ""].append(record)
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
