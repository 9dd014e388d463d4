"""History of the runs: events, metrics, evaluations. Idempotent, and consistent when a run resumes.

The key of an event is (run, attempt, number). An event that comes under a number which another one has is kept beside
it: one of them was forged. When an attempt begins at an older step than an earlier attempt had reached, the rows of the
lost steps are replaced: the history follows the lineage whose weights survive.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mor_core.errors import Invalid
from mor_core.run_status import ClientHistory, ClientHistoryPoint, Event, GateChange, MetricsHistory, RunCheckpoint
from mor_core.step_metrics import ClientFigures, StepMetrics, StepPoint
from mor_core.stored import StoredEntries
from mor_core.wire import UNREADABLE, Count, EventRecord, JsonObject
from pydantic import TypeAdapter

from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.database import Database
from mor_trainer.control.dead_letter_store import DeadLetterStore
from mor_trainer.control.event_check import check_event
from mor_trainer.control.run_rows import readable_row
from mor_trainer.control.run_store import RunStore
from mor_trainer.control.sample_store import SampleStore
from mor_trainer.control.transaction import Row, Transaction
from mor_trainer.event_log import event_number

_DROPPED = ("group_dropped", "unreadable_record")
"""Alerts that carry a dead letter."""
_KEPT_APART = ("thumbnails", "letter")
"""Parts of an event that have their own table and are not stored with it."""
_TABLES = {"step": "metrics", "evaluation": "evaluations"}
"""Kind of event that a step has once -> its table; the latest event of a step counts."""
_EVENLY_SPACED = """
WITH RECURSIVE wanted (step) AS (
  SELECT CAST(:last AS BIGINT)
  UNION ALL
  SELECT wanted.step - :stride FROM wanted WHERE wanted.step - :stride >= :first
)
SELECT metrics.step, metrics.at, metrics.data FROM wanted CROSS JOIN metrics
WHERE metrics.run=:run AND metrics.step=wanted.step ORDER BY metrics.step
"""
"""Every n-th step, so that only these rows are read."""
_RECORD = 64_000
"""Characters of an event that its dead letter keeps: enough to find the fault."""
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(JsonObject)
_COUNT: TypeAdapter[int] = TypeAdapter(Count)
_EVENTS = StoredEntries("events")
_ROWS = StoredEntries("history", largest=64 << 20)


def read_object(row: Row, table: str) -> dict[str, Any] | None:
    """Return the data of a row; ``None`` where it is no JSON object with finite numbers and bounded depth."""
    return _ROWS.parse(f"{table}, step {row['step']}", row["data"], _OBJECT.validate_json)


def read_steps(rows: Sequence[Row]) -> list[StepPoint]:
    """Return the metrics of the steps that can be read."""
    return _ROWS.parse_list(
        rows, lambda row: StepPoint.read({**_OBJECT.validate_json(row["data"]), "step": row["step"], "at": row["at"]})
    )


def _read_checkpoint(row: Row) -> RunCheckpoint:
    """Return the checkpoint of an event: one that was written, or one from which an attempt resumed.

    The worker may have died between writing it and reporting it.
    """
    data = _OBJECT.validate_json(row["data"])
    if row["kind"] == "state":
        data = {"path": data["checkpoint"]}
    return RunCheckpoint.model_validate({"step": row["step"], "at": row["at"], **data}, extra="ignore")


def _gate_changes(points: Sequence[StepPoint]) -> Iterator[GateChange]:
    """Yield the changes of the gate version between points, oldest first."""
    known = [(point.step, point.gate_version) for point in points if point.gate_version is not None]
    for (_, before), (step, after) in itertools.pairwise(known):
        if before != after:
            yield GateChange(step=step, before=before, after=after)


class History:
    """Store of everything that the training processes report."""

    def __init__(
        self,
        database: Database,
        runs: RunStore,
        alerts: AlertStore,
        dead_letters: DeadLetterStore,
        *,
        samples_kept: int,
        events_kept: int,
    ) -> None:
        self._database = database
        self._runs = runs
        self._alerts = alerts
        self._dead_letters = dead_letters
        self.samples = SampleStore(database, samples_kept)
        self._events_kept = events_kept

    def add(self, event: EventRecord) -> bool:
        """Store an event. Returns whether it is new and of the surviving lineage.

        Raises:
            Exception: the event does not fit, and nothing of it was stored.
        """
        row = readable_row(self._database, event.run)
        check_event(event, attempts=row.attempt, steps=row.spec.steps)
        return self._add(event)

    def refuse(self, event: EventRecord, reason: str) -> None:
        """Store an alert in place of an event that does not fit, with the event as a dead letter.

        It takes the event's number, so that the numbers of the attempt have no gap.
        """
        _EVENTS.refuse(event.group_id, reason)
        letter = {"stage": "trainer", "stream": "events", "attempts": 1, "record": event.model_dump_json()[:_RECORD]}
        data = {"name": "unreadable_record", "reason": reason, "group_id": UNREADABLE, "letter": letter}
        step = self._runs.snapshot(event.run).step or 0
        update = {"kind": "alert", "step": step, "data": data, "stamps": {"trainer": time.time()}}
        try:
            attempt, _ = event_number(event)
        except Invalid:
            attempt = 0
        if 1 <= attempt <= readable_row(self._database, event.run).attempt:
            self._add(event.model_copy(update=update))
        else:
            self._runs.warn(event.run, "unreadable_record", reason)

    def _add(self, event: EventRecord) -> bool:
        attempt, sequence = event_number(event)
        kept = {name: value for name, value in event.data.items() if name not in _KEPT_APART}
        content = (event.kind, event.step, json.dumps(kept))
        with self._database.transaction() as sql:
            there = sql.row(
                "SELECT kind, step, data FROM events WHERE run=:run AND attempt=:attempt AND sequence=:sequence",
                run=event.run,
                attempt=attempt,
                sequence=sequence,
            )
            if there is not None and (there["kind"], there["step"], there["data"]) == content:
                self._advance(sql, event.run, attempt)
                return False
            if there is not None:
                _EVENTS.refuse(event.group_id, "another event came under its number; both are kept")
            row = sql.value(
                "INSERT INTO events (run, attempt, sequence, at, kind, step, data) "
                "VALUES (:run, :attempt, :sequence, :at, :kind, :step, :data) RETURNING id",
                run=event.run,
                attempt=attempt,
                sequence=sequence if there is None else None,
                at=event.stamps["trainer"],
                **dict(zip(("kind", "step", "data"), content, strict=True)),
            )
            self._advance(sql, event.run, attempt)
            # A replay follows the checkpoint of its step, and is lost with what comes after that.
            step = event.step + 1 if event.kind == "replay" else event.step
            if event.kind == "state" and "from_step" in event.data:
                if not self._begin_attempt(sql, event.run, attempt, event.data["from_step"]):
                    return False
            elif self._lost(sql, event.run, attempt, step):
                sql.run("DELETE FROM events WHERE id=:id", id=row)
                return False
            self._apply(sql, event, attempt)
            self._prune_events(sql, event.run)
            self._touch(sql, event)
        return True

    def _prune_events(self, sql: Transaction, run: str) -> None:
        newest = "SELECT id FROM events WHERE run=:run ORDER BY id DESC LIMIT 1 OFFSET :kept"
        old = sql.value(newest, run=run, kept=self._events_kept)
        if old is not None:
            sql.run("DELETE FROM events WHERE run=:run AND id <= :old", run=run, old=old)
            sql.run("UPDATE runs SET pruned=:old WHERE id=:run", run=run, old=old)

    def _advance(self, sql: Transaction, run: str, attempt: int) -> None:
        """Raise the number up to which the attempt's events are here without a gap."""
        known = {"run": run, "attempt": attempt}
        stored = sql.value("SELECT seen FROM attempts WHERE run=:run AND attempt=:attempt", **known)
        if stored is None:
            sql.run("INSERT INTO attempts (run, attempt) VALUES (:run, :attempt)", **known)
        seen: int = _ROWS.parse(f"attempts of {run}", stored, _COUNT.validate_python) or 0
        query = "SELECT 1 FROM events WHERE run=:run AND attempt=:attempt AND sequence=:sequence"
        while sql.value(query, sequence=seen + 1, **known):
            seen += 1
        if seen != stored:
            sql.run("UPDATE attempts SET seen=:seen WHERE run=:run AND attempt=:attempt", seen=seen, **known)

    def _begin_attempt(self, sql: Transaction, run: str, attempt: int, step: int) -> bool:
        """Begin an attempt at ``step``. Return whether it is the latest; the report of an earlier one may come late."""
        known = {"run": run, "attempt": attempt}
        sql.run("UPDATE attempts SET from_step=:step WHERE run=:run AND attempt=:attempt", step=step, **known)
        if sql.value("SELECT 1 FROM attempts WHERE run=:run AND attempt>:attempt AND from_step IS NOT NULL", **known):
            return False
        self._dead_letters.rewind_in(sql, run, step)
        for table in ("metrics", "evaluations", "samples", "letters"):
            sql.run(f"DELETE FROM {table} WHERE run=:run AND step>:step AND attempt<:attempt", step=step, **known)  # noqa: S608
        return True

    @staticmethod
    def _lost(sql: Transaction, run: str, attempt: int, step: int) -> bool:
        """Return whether a later attempt began at an older step, so that the event is of lost weights."""
        query = "SELECT 1 FROM attempts WHERE run=:run AND attempt>:attempt AND from_step<:step"
        return sql.value(query, run=run, attempt=attempt, step=step) is not None

    def _apply(self, sql: Transaction, event: EventRecord, attempt: int) -> None:
        if (table := _TABLES.get(event.kind)) is not None:
            sql.run(
                f"INSERT INTO {table} (run, step, attempt, at, data) VALUES (:run, :step, :attempt, :at, :data) "  # noqa: S608
                "ON CONFLICT (run, step) DO UPDATE SET attempt=excluded.attempt, at=excluded.at, data=excluded.data",
                run=event.run,
                step=event.step,
                attempt=attempt,
                at=event.stamps["trainer"],
                data=json.dumps(event.data),
            )
        elif event.kind == "samples":
            self.samples.add_in(sql, event, attempt)
        elif event.kind == "replay":
            self._dead_letters.replayed_in(sql, event.run, event.step, event.data)
        elif event.kind == "alert":
            name, reason, at = event.data["name"], event.data["reason"], event.stamps["trainer"]
            if event.data.get("over"):
                self._alerts.end_in(sql, event.run, name, reason, at=at)
                return
            self._alerts.raise_in(sql, event.run, name, reason, step=event.step, at=at)
            if name in _DROPPED:
                self._dead_letters.add_in(sql, event.run, event.data, attempt=attempt, step=event.step, at=at)

    def _touch(self, sql: Transaction, event: EventRecord) -> None:
        columns: dict[str, Any] = {}
        if event.kind == "step":
            newest = sql.value("SELECT max(step) FROM metrics WHERE run=:run", run=event.run)
            if event.step == newest:  # an earlier one may come late
                columns = {"step": event.step, "gate_version": event.data.get("gate_version")}
        elif event.kind == "weights":
            known = sql.value("SELECT weights_version FROM runs WHERE id=:id", id=event.run)
            columns = {"weights_version": max(event.data["version"], known or 0)}
        elif event.kind == "state" and "from_step" in event.data:
            columns = {"step": event.data["from_step"] or None}
        self._runs.touch_in(sql, event.run, **columns)

    def forget_ended(self, before: float) -> int:
        """Delete the details of runs that ended before a Unix time; return the number of runs.

        State, metrics and evaluations stay, and so do the newest event and alerts that nobody has acknowledged.
        """
        ended = "SELECT id FROM runs WHERE finished_at<:before AND (SELECT count(*) FROM events WHERE run=runs.id)>1"
        runs = [row["id"] for row in self._database.rows(ended, before=before)]
        for run in runs:
            with self._database.transaction() as sql:
                newest = sql.value("SELECT max(id) FROM events WHERE run=:run", run=run)
                sql.run("DELETE FROM events WHERE run=:run AND id<:newest", run=run, newest=newest)
                sql.run("UPDATE runs SET pruned=:pruned WHERE id=:run", run=run, pruned=newest - 1)
                for table in ("samples", "thumbnails", "letters"):
                    sql.run(f"DELETE FROM {table} WHERE run=:run", run=run)  # noqa: S608
                sql.run("DELETE FROM alerts WHERE run=:run AND acknowledged_at IS NOT NULL", run=run)
        return len(runs)

    def metrics(self, run: str, since_step: int, max_points: int) -> MetricsHistory:
        """Return the metrics after ``since_step``: at most ``max_points`` steps, evenly spaced, with the last one."""
        stride, points = self._points(run, since_step, max_points)
        after = since_step or -1  # an evaluation of the base model is at step 0
        rows = self._database.rows(
            "SELECT step, data FROM evaluations WHERE run=:run AND step>:after ORDER BY step", run=run, after=after
        )
        return MetricsHistory(
            run=run,
            points=tuple(points),
            evaluations=tuple(found for row in rows if (found := read_object(row, "evaluations")) is not None),
            gate_changes=tuple(_gate_changes(points)),
            stride=stride,
        )

    def _points(self, run: str, since_step: int, max_points: int) -> tuple[int, list[StepPoint]]:
        """Return stride and points. The steps follow from their range, so that only the chosen rows are read."""
        self._runs.revision(run)
        span = self._database.row(  # one aggregate a query: two in one would read every row
            "SELECT (SELECT min(step) FROM metrics WHERE run=:run) AS low, "
            "(SELECT max(step) FROM metrics WHERE run=:run) AS high",
            run=run,
        )
        if span is None or span["high"] is None:
            return 1, []
        first, last = max(span["low"], since_step + 1), span["high"]
        stride = max(1, -(-(last - first + 1) // max_points))
        rows = self._database.rows(_EVENLY_SPACED, run=run, first=first, last=last, stride=stride)
        return stride, read_steps(rows)

    def clients(self, run: str) -> dict[str, ClientFigures]:
        """Return the figures of each client in the last step."""
        return self._last(run).clients

    def client(self, run: str, name: str, since_step: int, max_points: int) -> ClientHistory:
        """Return one client's figures over the steps."""
        last = self._last(run)
        stride, points = self._points(run, since_step, max_points)
        own = [(point, point.clients[name]) for point in points if name in point.clients]
        return ClientHistory(
            run=run,
            client=name,
            latest=last.clients.get(name),
            weight_by_domain={
                domain: figures.weights[name] for domain, figures in last.domains.items() if name in figures.weights
            },
            points=tuple(
                ClientHistoryPoint(
                    step=point.step, at=point.at, gate_version=point.gate_version, **figures.model_dump()
                )
                for point, figures in own
            ),
            stride=stride,
        )

    def _last(self, run: str) -> StepMetrics:
        return self._runs.snapshot(run).metrics or StepMetrics()

    def checkpoints(self, run: str) -> list[RunCheckpoint]:
        """List the checkpoints written so far, oldest first; older ones may have been deleted since."""
        self._runs.revision(run)
        rows = self._database.rows(
            "SELECT kind, step, at, data FROM events WHERE run=:run "
            "AND (kind='checkpoint' OR kind='state' AND data LIKE :pattern) ORDER BY id",
            run=run,
            pattern='%"checkpoint": %',
        )
        found: list[RunCheckpoint] = []
        for kind, one in _ROWS.parse_list(rows, lambda row: (row["kind"], _read_checkpoint(row))):
            if kind == "checkpoint" or all((one.step, one.path) != (known.step, known.path) for known in found):
                found.append(one)
        return found

    def evaluation_rewards(self, run: str) -> dict[int, float]:
        """Return the mean reward of each evaluation that has one, by its step."""
        rows = self._database.rows("SELECT step, data FROM evaluations WHERE run=:run", run=run)
        found = {row["step"]: read_object(row, "evaluations") or {} for row in rows}
        return {step: data["reward"] for step, data in found.items() if isinstance(data.get("reward"), float)}

    def pruned(self, run: str) -> int:
        """Return the newest event that is no longer kept; 0 when all are."""
        row = self._database.row("SELECT pruned FROM runs WHERE id=:id", id=run)
        return int(row["pruned"]) if row else 0

    def events(self, run: str, after: int, limit: int = 500) -> list[Event]:
        """List the events after the one with id ``after``, oldest first; data that cannot be read are left empty."""
        rows = self._database.rows(
            "SELECT * FROM events WHERE run=:run AND id>:after ORDER BY id LIMIT :limit",
            run=run,
            after=after,
            limit=limit,
        )
        return _ROWS.parse_list(
            rows,
            lambda row: Event(
                id=row["id"],
                kind=row["kind"],
                step=row["step"],
                at=row["at"],
                data=read_object(row, "events") or {},
            ),
        )
