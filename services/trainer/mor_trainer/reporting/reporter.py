"""Reporter of a training process: metrics and samples of each step, and alerts, as events."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
from anyio.from_thread import BlockingPortal
from mor_core.run_alerts import AlertName
from mor_core.runs import RunSpec
from mor_core.wire import RewardRecord

from mor_trainer.event_log import EventLog
from mor_trainer.reporting.measurement import FinishedStep, client_failures, measure
from mor_trainer.reporting.samples import sample_groups
from mor_trainer.update.resumption import Restart, Resumption
from mor_trainer.update.updater import UpdateReport

log = structlog.get_logger(__name__)


class StepReporter:
    """Reporter of one attempt at a run.

    The training thread calls every method; the events are kept on the portal's event loop.
    """

    def __init__(self, portal: BlockingPortal, events: EventLog, run: str, spec: RunSpec) -> None:
        self._portal = portal
        self._events = events
        self._run = run
        self._spec = spec
        self._raised: set[str] = set()
        self._updates: deque[tuple[float, float]] = deque(maxlen=spec.max_staleness + 1)
        """Unix times of the updates during which groups of the next step may have been sampled."""
        self.gate_version: int | None = None
        """Newest gate version that scored a group of the last step."""
        self.client_failures: dict[str, dict[str, int]] = defaultdict(dict)
        """Client -> status -> groups, over the whole run."""

    def restore(self, gate_version: int | None, client_failures: Mapping[str, dict[str, int]]) -> None:
        """Continue the counts of a checkpoint."""
        self.gate_version = gate_version
        self.client_failures = defaultdict(dict, client_failures)

    def beginning(self, resumption: Resumption | Restart, *, left_out: str | None) -> None:
        """Report where the attempt begins. ``left_out``: prompts of a new run that cannot be used, if any."""
        if isinstance(resumption, Restart):
            self.emit("state", 0, {"name": "started", "from_step": 0})
            for problem in resumption.problems:
                self._alert(0, "checkpoint_unreadable", f"{problem}; the run begins anew")
            if left_out is not None:
                self._alert(0, "prompts_left_out", left_out)
            return
        step, checkpoint = resumption.state.step, resumption.checkpoint
        self.emit("state", step, {"name": "resumed", "from_step": step, "checkpoint": str(checkpoint.resolve())})
        for problem in resumption.problems:
            self._alert(step, "checkpoint_unreadable", f"{problem}; the run continues from {checkpoint.name}")

    def emit(self, kind: Any, step: int, data: dict[str, Any]) -> None:
        """Queue an event for the run's history."""
        self._portal.call(self._events.add, kind, step, data)

    def step(self, number: int, step: FinishedStep, images: Callable[[int], Mapping[str, bytes]]) -> None:
        """Report a finished step: its samples, its metrics, and the alerts that follow from it.

        ``images`` returns the encoded pictures of a group's prompt, by the group's number.
        """
        self.gate_version = max(record.gate_version for record in step.scored)
        self._count_failures(step.scored)
        metrics = measure(
            step, gate_version=self.gate_version, failures_total=self.client_failures, updates=self._updates
        )
        self._updates.append(step.trained)
        self.emit("samples", number, sample_groups(step.taken, step.update.advantages, number, images))
        self.emit("step", number, metrics.model_dump(mode="json"))
        self._raise_alerts(number, step.update)
        log.info(
            "step",
            run=self._run,
            step=number,
            reward=_rounded(metrics.reward_mean),
            kl=_rounded(metrics.kl),
            seconds=round(step.seconds, 2),
            shares={name: round(value, 2) for name, value in step.phases.model_dump(exclude_none=True).items()},
        )

    def _count_failures(self, records: Iterable[RewardRecord]) -> None:
        for client, failures in client_failures(records).items():
            known = self.client_failures[client]
            for status, count in failures.items():
                known[status] = known.get(status, 0) + count

    def _raise_alerts(self, number: int, update: UpdateReport) -> None:
        if update.skipped:
            reason = f"{update.skipped} updates had a loss or gradient that is not finite and were left out"
            self._alert(number, "non_finite", reason)
        bound, difference = self._spec.max_engine_difference, update.engine_difference
        if bound is not None and difference is not None and difference > bound:
            self._alert_once(
                number,
                "engine_disagrees",
                f"engine and trainer disagree by {difference:.3g} nats a token from the same weights, more than "
                f"max_engine_difference={bound:g}; on the first groups of this attempt they agreed. Restart the "
                "rollout service, which tests its engine at start; if that does not help, stop the run",
            )
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
        if name not in self._raised:
            self._raised.add(name)
            self._alert(number, name, reason)

    def _alert(self, number: int, name: AlertName, reason: str) -> None:
        self.emit("alert", number, {"name": name, "reason": reason})


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
