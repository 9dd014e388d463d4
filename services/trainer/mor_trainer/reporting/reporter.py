"""What a training process tells of its run: the metrics and samples of each step, and alerts."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from anyio.from_thread import BlockingPortal
from mor_core.run_status import AlertName
from mor_core.runs import RunSpec

from mor_trainer.event_log import EventLog
from mor_trainer.groups.scored import Taken
from mor_trainer.reporting import step_metrics
from mor_trainer.update.updater import UpdateReport

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Step:
    """One step, as far as it is told."""

    taken: Sequence[Taken]
    skipped: Sequence[Taken]
    update: UpdateReport
    began_at: float
    """Unix time, seconds."""
    trained: tuple[float, float]
    """Unix times at which the update began and ended."""
    seconds: float
    shares: Mapping[str, float]
    """Seconds by name of what they were spent on."""
    counts: Mapping[str, int]
    """Totals of the run: groups applied, skipped, dropped, and so on; the version that was published."""


class Teller:
    """Every method is called from the training thread; events are kept on the portal's event loop."""

    def __init__(self, portal: BlockingPortal, events: EventLog, run: str, spec: RunSpec) -> None:
        self._portal = portal
        self._events = events
        self._run = run
        self._spec = spec
        self._told: set[str] = set()
        self._updates: deque[tuple[float, float]] = deque(maxlen=spec.max_staleness + 1)
        self.gate_version: int | None = None
        """Newest that a reward of the run came from."""
        self.client_failures: dict[str, dict[str, int]] = defaultdict(dict)
        """Client -> status -> groups, over the whole run."""

    def restore(self, gate_version: int | None, client_failures: Mapping[str, dict[str, int]]) -> None:
        """Go on counting where a checkpoint was written."""
        self.gate_version = gate_version
        self.client_failures = defaultdict(dict, client_failures)

    def emit(self, kind: Any, step: int, data: dict[str, Any]) -> None:
        self._portal.call(self._events.add, kind, step, data)

    def step(self, number: int, step: Step, images: Callable[[int], Mapping[str, bytes]]) -> None:
        """Tell of a step that is done. ``images``: encoded pictures of a group's prompt, by its number."""
        records = [item.group.record for item in step.taken]
        scored = records + [item.group.record for item in step.skipped]
        self.gate_version = max(record.gate_version for record in scored)
        rewards = step_metrics.reward_metrics(scored)
        self._count_failures(rewards["clients"])
        metrics: dict[str, Any] = {
            **rewards,
            **step_metrics.update_metrics(step.update),
            **step_metrics.group_metrics(step.taken),
            **step.counts,
            "gate_version": self.gate_version,
            "step_seconds": step.seconds,
            "seconds": dict(step.shares),
            "tokens_per_second": step.update.sums.tokens / step.seconds,
            "begun_at": step.began_at,
            **step_metrics.stages(step.taken, self._updates),
            "applied": [record.group_id for record in records],
            "sampled_by": sorted({version for record in records for version in record.rollout.versions}),
        }
        metrics["stages"]["trained"] = list(step.trained)
        self._updates.append(step.trained)
        self.emit("samples", number, step_metrics.samples(step.taken, step.update.advantages, number, images))
        self.emit("step", number, metrics)
        self._alert_of(number, step.update)
        log.info(
            "step",
            run=self._run,
            step=number,
            reward=_rounded(metrics["reward_mean"]),
            kl=_rounded(metrics["kl"]),
            seconds=round(step.seconds, 2),
            shares={name: round(value, 2) for name, value in step.shares.items()},
        )

    def _count_failures(self, clients: Mapping[str, dict[str, Any]]) -> None:
        for client, figures in clients.items():
            known = self.client_failures[client]
            for status, count in figures["failures"].items():
                known[status] = known.get(status, 0) + count
            figures["failures_total"] = dict(known)

    def _alert_of(self, number: int, update: UpdateReport) -> None:
        if update.skipped:
            reason = f"{update.skipped} updates had a loss or gradient that is not finite and were left out"
            self._alert(number, "non_finite", reason)
        budget = self._spec.micro_batch_tokens
        if update.micro_batch_tokens < budget:
            self._alert_once(
                number,
                "out_of_memory",
                f"memory ran out; micro-batches hold at most {update.micro_batch_tokens} tokens from now on instead of "
                f"micro_batch_tokens={budget}",
            )
        elif update.divided_groups:
            self._alert_once(
                number,
                "group_divided",
                f"{update.divided_groups} groups of this step have more than micro_batch_tokens={budget} tokens; their "
                "prompts are computed once for each part, raise micro_batch_tokens where memory allows",
            )

    def _alert_once(self, number: int, name: AlertName, reason: str) -> None:
        if name not in self._told:
            self._told.add(name)
            self._alert(number, name, reason)

    def _alert(self, number: int, name: AlertName, reason: str) -> None:
        self.emit("alert", number, {"name": name, "reason": reason})


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
