"""Guards of runs at work: they judge each step that the history takes, raise alerts, and pause a run that collapses."""

from __future__ import annotations

from pathlib import Path

import structlog
from mor_core.evaluated_steps import EvaluatedStep, best_step, checkpoint_at
from mor_core.failures import describe_failure
from mor_core.guards import ALERT_OF_GUARD, GuardName, Guards
from mor_core.run_alerts import AlertName
from mor_core.runs import RunSpec
from mor_core.step_metrics import StepPoint
from mor_core.wire import EventRecord

from mor_trainer.algorithm.collapse import RunFigures, judge
from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.database import Database
from mor_trainer.control.history import read_evaluated, read_steps
from mor_trainer.control.run_rows import add_event, readable_row
from mor_trainer.control.run_store import RunStore
from mor_trainer.run_files import checkpoints, folder_of, step_of

log = structlog.get_logger(__name__)


class RunGuards:
    """Guards of all runs.

    They read the history, which a restart of run control or of a worker keeps. After an alert, a guard judges the steps
    that come after it.
    """

    def __init__(self, runs_dir: Path, database: Database, runs: RunStore, alerts: AlertStore) -> None:
        self._runs_dir, self._database, self._runs, self._alerts = runs_dir, database, runs, alerts

    def observe(self, event: EventRecord, spec: RunSpec) -> None:
        """Judge a run after an event of it. A failure is logged: the next step is judged again."""
        if event.kind != "step":
            return
        try:
            self._judge_all(event.run, event.step, event.stamps["trainer"], spec.guards)
        except Exception as error:  # the step is stored, and the run goes on
            log.warning("a run's guards could not judge a step", run=event.run, error=describe_failure(error))

    def _judge_all(self, run: str, step: int, at: float, guards: Guards) -> None:
        active: list[GuardName] = [name for name in ALERT_OF_GUARD if guards.action(name) != "off"]
        if not active or step < guards.window:
            return
        recent, evaluated = self._steps(run, step, guards.window), read_evaluated(self._database, run)
        if len(recent) < guards.window:
            return
        best = best_step(evaluated)
        at_best = () if best is None else self._steps(run, best.step, guards.window)
        figures = RunFigures(self._steps(run, step, guards.window, first=True), recent, evaluated, at_best)
        raised = self._raised(run)
        for name in active:
            alert = ALERT_OF_GUARD[name]
            last, is_open = raised.get(alert, (0, False))
            if last <= step < last + guards.window:  # after a rewind, the latest steps may be older than the alert
                continue
            found = judge(name, guards, figures)
            if found is not None:
                pauses = guards.action(name) == "pause" and alert not in raised
                self._raise(run, step, name, f"{found}. {self._advice(run, best)}", at, pauses=pauses)
            elif is_open:
                self._end(run, alert, f"the figure was within its bound for {guards.window} steps", at)

    def _steps(self, run: str, until: int, count: int, *, first: bool = False) -> list[StepPoint]:
        """Return the latest steps up to ``until``, or the ``first`` ones of the run; oldest first."""
        rows = self._database.rows(
            "SELECT step, at, data FROM metrics WHERE run=:run AND step<=:until "  # noqa: S608
            f"ORDER BY step {'ASC' if first else 'DESC'} LIMIT :count",
            run=run,
            until=until,
            count=count,
        )
        return sorted(read_steps(rows), key=lambda point: point.step)

    def _raised(self, run: str) -> dict[str, tuple[int, bool]]:
        """Return by name the step of the latest alert, and whether it is still open."""
        rows = self._database.rows("SELECT name, step, acknowledged_at FROM alerts WHERE run=:run ORDER BY id", run=run)
        return {row["name"]: (row["step"] or 0, row["acknowledged_at"] is None) for row in rows}

    def _raise(self, run: str, step: int, guard: GuardName, reason: str, at: float, *, pauses: bool) -> None:
        row = readable_row(self._database, run)
        if pauses := pauses and row.desired == "run" and not row.state.over:
            reason = f"paused by guards.{guard}: {reason}. To go on as it is: mor run resume {run}"
        log.warning("a guard found a collapse", run=run, guard=guard, step=step, reason=reason)
        alert = ALERT_OF_GUARD[guard]
        with self._database.transaction() as sql:
            self._alerts.raise_in(sql, run, alert, reason, step=step, at=at)
            add_event(sql, run, {"name": alert, "reason": reason}, kind="alert")
            if pauses:
                add_event(sql, run, {"desired": "pause", "error": reason})
            self._runs.touch_in(sql, run, **({"desired": "pause", "error": reason} if pauses else {}))

    def _end(self, run: str, alert: AlertName, why: str, at: float) -> None:
        with self._database.transaction() as sql:
            self._alerts.end_in(sql, run, alert, why, at=at)
            add_event(sql, run, {"name": alert, "reason": why, "over": True}, kind="alert")
            self._runs.touch_in(sql, run)

    def _advice(self, run: str, best: EvaluatedStep | None) -> str:
        """Return the checkpoint to go back to, and how."""
        written = [step_of(path) for path in checkpoints(folder_of(self._runs_dir, run))]
        if best is None:
            steps = f"there are checkpoints of steps {', '.join(map(str, written))}" if written else "there is none yet"
            return f"The run has no finished evaluation, so that no checkpoint is known as the best; {steps}"
        at = checkpoint_at(best.step, written)
        if at is None:
            return f"No checkpoint is as good as the policy of step {best.step} (evaluation {best.reward:.2f})"
        return (
            f"The best checkpoint by evaluation ({best.reward:.2f} at step {best.step}) is that of step {at}, which is "
            f"kept. To have its model: mor run stop {run}, then mor run export {run} FOLDER --checkpoint {at}"
        )
