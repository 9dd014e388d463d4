"""State of a run as its readers see it: progress, pace, newest metrics and evaluation."""

from __future__ import annotations

import statistics
from typing import Any

from mor_core.preflight_status import PreflightStatus
from mor_core.runs import RunSnapshot, RunSpec, RunState
from mor_core.step_metrics import StepMetrics
from mor_core.stored import StoredEntries
from mor_core.wire import JsonObject
from pydantic import TypeAdapter

from mor_trainer.control.cursors import event_cursor
from mor_trainer.control.database import Database
from mor_trainer.control.kubeflow import trainer_status
from mor_trainer.control.run_rows import read_tags
from mor_trainer.control.transaction import Row

_PACE_STEPS = 20
"""Steps whose median duration gives the time left: enough to even out checkpoints, few enough to follow a change."""
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(JsonObject)
_ROWS = StoredEntries("history", largest=64 << 20)


def last_event(database: Database, run: str) -> int:
    """Return the id of the run's newest event; 0 before the first."""
    row = database.row("SELECT max(id) AS id FROM events WHERE run=:run", run=run)
    return int(row["id"] or 0) if row else 0


def read_snapshot(database: Database, row: Row, *, disk_full: str | None = None) -> RunSnapshot:
    """Return the state of the run with this row. ``disk_full``: what its worker waits to write.

    Raises:
        ValueError: a column does not fit.
    """
    run, state, step = row["id"], RunState(row["state"]), row["step"]
    # The cursor is read first: the rest may be newer than the cursor, never older.
    cursor = event_cursor(run, last_event(database, run))
    spec = RunSpec.model_validate_json(row["spec"], extra="ignore")
    recent = _ROWS.parse_list(
        database.rows(
            "SELECT data FROM metrics WHERE run=:run ORDER BY step DESC LIMIT :steps", run=run, steps=_PACE_STEPS
        ),
        lambda found: StepMetrics.read(_OBJECT.validate_json(found["data"])),
    )
    evaluation = database.row("SELECT data FROM evaluations WHERE run=:run ORDER BY step DESC LIMIT 1", run=run)
    pace = [metrics.step_seconds for metrics in recent if metrics.step_seconds is not None]
    eta = (
        statistics.median(pace) * (spec.steps - step)
        if pace and step is not None and state is RunState.running
        else None
    )
    metrics = recent[0] if recent else None
    progress = None if step is None else step / spec.steps
    return RunSnapshot(
        id=run,
        name=spec.name,
        tags=_ROWS.parse(run, row["tags"], read_tags) or (),
        note=row["note"],
        state=state,
        desired=row["desired"],
        step=step,
        total=spec.steps,
        progress=progress,
        eta_s=eta,
        created_at=row["created_at"],
        started_at=row["started_at"],
        updated_at=row["updated_at"],
        finished_at=row["finished_at"],
        model=spec.model,
        weights_version=row["weights_version"],
        gate_version=row["gate_version"],
        control_rewards=spec.control_rewards,
        warnings=spec.warnings(),
        preflight=_ROWS.parse(
            run, row["preflight"], lambda found: PreflightStatus.model_validate_json(found, extra="ignore")
        ),
        metrics=metrics,
        evaluation=_ROWS.parse(run, evaluation, lambda found: _OBJECT.validate_json(found["data"])),
        final=row["final"],
        archived=row["archived_at"] is not None,
        error=row["error"],
        disk_full=disk_full,
        cursor=cursor,
        trainer_status=trainer_status(progress=progress, eta_s=eta, metrics=metrics, updated_at=row["updated_at"]),
    )
