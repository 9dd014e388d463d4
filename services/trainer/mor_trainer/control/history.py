"""History of the runs: events, metrics, evaluations, samples. Idempotent, and consistent when a run resumes.

The key of an event is (run, attempt, number). An event that comes under a number which another one has is kept beside
it: one of them was forged. When an attempt begins at an older step than an earlier attempt had reached, the rows of the
lost steps are replaced: the history follows the lineage whose weights survive.
"""

from __future__ import annotations

import json
import sqlite3
import time
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

from mor_core.errors import Invalid, NotFound
from mor_core.run_status import ClientHistory, ClientHistoryPoint, Event, MetricsHistory, RunCheckpoint, SampleGroup
from mor_core.step_metrics import ClientFigures, StepMetrics, StepPoint
from mor_core.stored import StoredEntries
from mor_core.wire import Count, EventRecord, JsonObject
from pydantic import TypeAdapter

from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.database import Database
from mor_trainer.control.dead_letter_store import UNREADABLE, DeadLetterStore
from mor_trainer.control.event_check import check_event
from mor_trainer.control.run_store import RunStore
from mor_trainer.event_log import event_number

_DROPPED = ("group_dropped", "unreadable_record")
"""Alerts that carry a dead letter."""
_KEPT_APART = ("thumbnails", "letter")
"""Parts of an event that have their own table and are not stored with it."""
_RECORD = 64_000
"""Characters of an event that its dead letter keeps: enough to find the fault."""
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(JsonObject)
_COUNT: TypeAdapter[int] = TypeAdapter(Count)
_EVENTS = StoredEntries("events")
_ROWS = StoredEntries("history", largest=64 << 20)


def read_object(row: sqlite3.Row, table: str) -> dict[str, Any] | None:
    """Return the data of a row; ``None`` where it is no JSON object with finite numbers and bounded depth."""
    return _ROWS.parse(f"{table}, step {row['step']}", row["data"], _OBJECT.validate_json)


def read_steps(rows: Sequence[sqlite3.Row]) -> list[StepPoint]:
    """Return the metrics of the steps that can be read."""
    return _ROWS.parse_list(
        rows, lambda row: StepPoint.read({**_OBJECT.validate_json(row["data"]), "step": row["step"], "at": row["at"]})
    )


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
        self._samples_kept = samples_kept
        self._events_kept = events_kept

    def add(self, event: EventRecord) -> bool:
        """Store an event. Returns whether it is new and of the surviving lineage.

        Raises:
            Exception: the event does not fit, and nothing of it was stored.
        """
        check_event(event, attempts=self._runs.attempts(event.run), steps=self._runs.spec(event.run).steps)
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
        if 1 <= attempt <= self._runs.attempts(event.run):
            self._add(event.model_copy(update=update))
        else:
            self._runs.warn(event.run, "unreadable_record", reason)

    def _add(self, event: EventRecord) -> bool:
        attempt, sequence = event_number(event)
        kept = {name: value for name, value in event.data.items() if name not in _KEPT_APART}
        content = (event.kind, event.step, json.dumps(kept))
        with self._database.transaction() as sql:
            there = sql.execute(
                "SELECT kind, step, data FROM events WHERE run=? AND attempt=? AND sequence=?",
                (event.run, attempt, sequence),
            ).fetchone()
            if there is not None and tuple(there) == content:
                self._advance(sql, event.run, attempt)
                return False
            if there is not None:
                _EVENTS.refuse(event.group_id, "another event came under its number; both are kept")
            row = sql.execute(
                "INSERT INTO events (run, attempt, sequence, at, kind, step, data) VALUES (?,?,?,?,?,?,?)",
                (event.run, attempt, sequence if there is None else None, event.stamps["trainer"], *content),
            ).lastrowid
            self._advance(sql, event.run, attempt)
            if event.kind == "state" and "from_step" in event.data:
                self._begin_attempt(sql, event.run, attempt, event.data["from_step"])
            elif self._lost(sql, event.run, attempt, event.step):
                sql.execute("DELETE FROM events WHERE id=?", (row,))
                return False
            self._apply(sql, event, attempt)
            self._prune_events(sql, event.run)
        self._touch(event)
        return True

    def _prune_events(self, sql: sqlite3.Connection, run: str) -> None:
        newest = "SELECT id FROM events WHERE run=? ORDER BY id DESC LIMIT 1 OFFSET ?"
        old = sql.execute(newest, (run, self._events_kept)).fetchone()
        if old is not None:
            sql.execute("DELETE FROM events WHERE run=? AND id <= ?", (run, old["id"]))
            sql.execute("UPDATE runs SET pruned=? WHERE id=?", (old["id"], run))

    def _advance(self, sql: sqlite3.Connection, run: str, attempt: int) -> None:
        """Raise the number up to which the attempt's events are here without a gap."""
        sql.execute("INSERT OR IGNORE INTO attempts (run, attempt) VALUES (?, ?)", (run, attempt))
        stored = sql.execute("SELECT seen FROM attempts WHERE run=? AND attempt=?", (run, attempt)).fetchone()[0]
        seen: int = _ROWS.parse(f"attempts of {run}", stored, _COUNT.validate_python) or 0
        query = "SELECT 1 FROM events WHERE run=? AND attempt=? AND sequence=?"
        while sql.execute(query, (run, attempt, seen + 1)).fetchone():
            seen += 1
        sql.execute("UPDATE attempts SET seen=? WHERE run=? AND attempt=?", (seen, run, attempt))

    def _begin_attempt(self, sql: sqlite3.Connection, run: str, attempt: int, step: int) -> None:
        sql.execute("UPDATE attempts SET from_step=? WHERE run=? AND attempt=?", (step, run, attempt))
        self._dead_letters.rewind_in(sql, run, step)
        for table in ("metrics", "evaluations", "samples", "letters"):
            sql.execute(f"DELETE FROM {table} WHERE run=? AND step>? AND attempt<?", (run, step, attempt))  # noqa: S608

    @staticmethod
    def _lost(sql: sqlite3.Connection, run: str, attempt: int, step: int) -> bool:
        """Return whether a later attempt began at an older step, so that the event is of lost weights."""
        query = "SELECT 1 FROM attempts WHERE run=? AND attempt>? AND from_step<?"
        return sql.execute(query, (run, attempt, step)).fetchone() is not None

    def _apply(self, sql: sqlite3.Connection, event: EventRecord, attempt: int) -> None:
        values = (event.run, event.step, attempt, event.stamps["trainer"], json.dumps(event.data))
        if event.kind == "step":
            sql.execute("INSERT OR REPLACE INTO metrics (run, step, attempt, at, data) VALUES (?,?,?,?,?)", values)
        elif event.kind == "evaluation":
            sql.execute("INSERT OR REPLACE INTO evaluations (run, step, attempt, at, data) VALUES (?,?,?,?,?)", values)
        elif event.kind == "samples":
            self._add_samples(sql, event, attempt)
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

    def _add_samples(self, sql: sqlite3.Connection, event: EventRecord, attempt: int) -> None:
        for group in event.data["groups"]:
            sql.execute(
                "INSERT INTO samples (run, step, attempt, data) VALUES (?,?,?,?)",
                (event.run, event.step, attempt, json.dumps(group)),
            )
        for digest, content in event.data.get("thumbnails", {}).items():
            sql.execute("INSERT OR IGNORE INTO thumbnails VALUES (?,?,?)", (event.run, digest, b64decode(content)))
        sql.execute(
            "DELETE FROM samples WHERE run=? AND id NOT IN "
            "(SELECT id FROM samples WHERE run=? ORDER BY id DESC LIMIT ?)",
            (event.run, event.run, self._samples_kept),
        )
        sql.execute(
            "DELETE FROM thumbnails WHERE run=? AND sha256 NOT IN "
            "(SELECT value FROM samples, json_each(samples.data, '$.images') WHERE samples.run=?)",
            (event.run, event.run),
        )

    def _touch(self, event: EventRecord) -> None:
        if event.kind == "step":
            self._runs.touch(event.run, step=event.step, gate_version=event.data.get("gate_version"))
        elif event.kind == "weights":
            self._runs.touch(event.run, weights_version=event.data["version"])
        elif event.kind == "state" and "from_step" in event.data:
            self._runs.touch(event.run, step=event.data["from_step"] or None)
        else:
            self._runs.touch(event.run)

    def metrics(self, run: str, since_step: int, max_points: int) -> MetricsHistory:
        """Return the metrics after ``since_step``: at most ``max_points`` steps, evenly spaced, with the last one."""
        stride, points = self._points(run, since_step, max_points)
        after = since_step or -1  # an evaluation of the base model is at step 0
        rows = self._database.rows(
            "SELECT step, data FROM evaluations WHERE run=? AND step>? ORDER BY step", run, after
        )
        return MetricsHistory(
            run=run,
            points=tuple(points),
            evaluations=tuple(found for row in rows if (found := read_object(row, "evaluations")) is not None),
            stride=stride,
        )

    def _points(self, run: str, since_step: int, max_points: int) -> tuple[int, list[StepPoint]]:
        """Return stride and points. The steps follow from their range, so that only the chosen rows are read."""
        self._runs.revision(run)
        span = self._database.row(  # one aggregate a query: two in one would read every row
            "SELECT (SELECT min(step) FROM metrics WHERE run=?) AS low, "
            "(SELECT max(step) FROM metrics WHERE run=?) AS high",
            run,
            run,
        )
        if span is None or span["high"] is None:
            return 1, []
        first, last = max(span["low"], since_step + 1), span["high"]
        stride = max(1, -(-(last - first + 1) // max_points))
        wanted = json.dumps(list(range(last, first - 1, -stride)))
        rows = self._database.rows(
            "SELECT step, at, data FROM metrics WHERE run=? AND step IN (SELECT value FROM json_each(?)) ORDER BY step",
            run,
            wanted,
        )
        return stride, read_steps(rows)

    def samples(self, run: str, limit: int, *, picture: str = "") -> list[SampleGroup]:
        """List the newest sample groups, newest first: all, or those in which the hash of ``picture`` occurs."""
        self._runs.revision(run)
        rows = self._database.rows(
            "SELECT step, data FROM samples WHERE run=? AND data LIKE ? ORDER BY id DESC LIMIT ?",
            run,
            f"%{picture}%",
            limit,
        )
        return _ROWS.parse_list(
            rows,
            lambda row: SampleGroup.model_validate(
                {"step": row["step"], **_OBJECT.validate_json(row["data"])}, extra="ignore"
            ),
        )

    def thumbnail(self, run: str, digest: str) -> bytes:
        """Return the thumbnail of a sample's picture, a JPEG.

        Raises:
            NotFound: no kept sample has that picture.
        """
        self._runs.revision(run)
        row = self._database.row("SELECT content FROM thumbnails WHERE run=? AND sha256=?", run, digest)
        if row is None:
            raise NotFound(f"no kept sample of run {run} has a picture {digest[:12]}; /samples lists them")
        return bytes(row["content"])

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
                ClientHistoryPoint(step=point.step, at=point.at, **figures.model_dump()) for point, figures in own
            ),
            stride=stride,
        )

    def _last(self, run: str) -> StepMetrics:
        return self._runs.snapshot(run).metrics or StepMetrics()

    def checkpoints(self, run: str) -> list[RunCheckpoint]:
        """List the checkpoints written so far, oldest first; older ones may have been deleted since."""
        self._runs.revision(run)
        rows = self._database.rows(
            "SELECT step, at, data FROM events WHERE run=? AND kind='checkpoint' ORDER BY id", run
        )
        return _ROWS.parse_list(
            rows,
            lambda row: RunCheckpoint.model_validate(
                {"step": row["step"], "at": row["at"], **_OBJECT.validate_json(row["data"])}, extra="ignore"
            ),
        )

    def pruned(self, run: str) -> int:
        """Return the newest event that is no longer kept; 0 when all are."""
        row = self._database.row("SELECT pruned FROM runs WHERE id=?", run)
        return int(row["pruned"]) if row else 0

    def events(self, run: str, after: int, limit: int = 500) -> list[Event]:
        """List the events after the one with id ``after``, oldest first; data that cannot be read are left empty."""
        rows = self._database.rows("SELECT * FROM events WHERE run=? AND id>? ORDER BY id LIMIT ?", run, after, limit)
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
