"""What happened in each run: events, metrics, evaluations, samples. Idempotent, and consistent when a run resumes.

An event is known by (run, attempt, number). When an attempt begins at an older step than another had reached, the rows
of the lost steps are replaced: the history is that of the lineage whose weights survive.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from mor_core.errors import Invalid
from mor_core.wire import EventRecord, Wire

from mor_trainer.database import Database
from mor_trainer.events import parse_event_id
from mor_trainer.store import RunStore


class Event(Wire):
    """An event as readers get it."""

    id: int
    kind: str
    step: int | None
    at: float
    data: dict[str, Any]


class History:
    def __init__(self, database: Database, runs: RunStore, *, samples_kept: int, events_kept: int) -> None:
        self._database = database
        self._runs = runs
        self._samples_kept = samples_kept
        self._events_kept = events_kept

    # --- writing ------------------------------------------------------------------------------------------------

    def add(self, event: EventRecord) -> bool:
        """Take an event in. Returns whether it was new and of the surviving lineage."""
        attempt, sequence = parse_event_id(event.group_id)
        with self._database.transaction() as sql:
            fresh = sql.execute(
                "INSERT OR IGNORE INTO events (run, attempt, sequence, kind, step, at, data) VALUES (?,?,?,?,?,?,?)",
                (event.run, attempt, sequence, event.kind, event.step, event.stamps["trainer"], json.dumps(event.data)),
            ).rowcount
            self._advance(sql, event.run, attempt)
            if not fresh:
                return False
            if event.kind == "state" and "from_step" in event.data:
                self._begin_attempt(sql, event.run, attempt, event.data["from_step"])
            elif self._lost(sql, event.run, attempt, event.step):
                sql.execute(
                    "DELETE FROM events WHERE run=? AND attempt=? AND sequence=?", (event.run, attempt, sequence)
                )
                return False
            self._apply(sql, event, attempt)
            sql.execute(
                "DELETE FROM events WHERE run=? AND id <= (SELECT max(id) FROM events WHERE run=?) - ?",
                (event.run, event.run, self._events_kept),
            )
        self._touch(event)
        return True

    def _advance(self, sql: sqlite3.Connection, run: str, attempt: int) -> None:
        """Move the attempt's mark of gapless events."""
        sql.execute("INSERT OR IGNORE INTO attempts (run, attempt) VALUES (?, ?)", (run, attempt))
        seen: int = sql.execute("SELECT seen FROM attempts WHERE run=? AND attempt=?", (run, attempt)).fetchone()[0]
        query = "SELECT 1 FROM events WHERE run=? AND attempt=? AND sequence=?"
        while sql.execute(query, (run, attempt, seen + 1)).fetchone():
            seen += 1
        sql.execute("UPDATE attempts SET seen=? WHERE run=? AND attempt=?", (seen, run, attempt))

    @staticmethod
    def _begin_attempt(sql: sqlite3.Connection, run: str, attempt: int, step: int) -> None:
        sql.execute("UPDATE attempts SET from_step=? WHERE run=? AND attempt=?", (step, run, attempt))
        for table in ("metrics", "evaluations", "samples"):
            sql.execute(f"DELETE FROM {table} WHERE run=? AND step>? AND attempt<?", (run, step, attempt))  # noqa: S608

    @staticmethod
    def _lost(sql: sqlite3.Connection, run: str, attempt: int, step: int) -> bool:
        """Whether a later attempt began at an older step: the event tells of weights that are gone."""
        query = "SELECT 1 FROM attempts WHERE run=? AND attempt>? AND from_step<?"
        return sql.execute(query, (run, attempt, step)).fetchone() is not None

    def _apply(self, sql: sqlite3.Connection, event: EventRecord, attempt: int) -> None:
        values = (event.run, event.step, attempt, event.stamps["trainer"], json.dumps(event.data))
        if event.kind == "step":
            sql.execute("INSERT OR REPLACE INTO metrics (run, step, attempt, at, data) VALUES (?,?,?,?,?)", values)
        elif event.kind == "evaluation":
            sql.execute("INSERT OR REPLACE INTO evaluations (run, step, attempt, at, data) VALUES (?,?,?,?,?)", values)
        elif event.kind == "samples":
            for group in event.data["groups"]:
                sql.execute(
                    "INSERT INTO samples (run, step, attempt, data) VALUES (?,?,?,?)",
                    (event.run, event.step, attempt, json.dumps(group)),
                )
            sql.execute(
                "DELETE FROM samples WHERE run=? AND id NOT IN "
                "(SELECT id FROM samples WHERE run=? ORDER BY id DESC LIMIT ?)",
                (event.run, event.run, self._samples_kept),
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

    # --- reading ------------------------------------------------------------------------------------------------

    def metrics(self, run: str, since_step: int, max_points: int) -> list[dict[str, Any]]:
        """Metrics of the steps after ``since_step``; at most ``max_points``, evenly spaced, with the last one."""
        self._runs.revision(run)
        count = self._count(run, since_step)
        stride = max(1, -(-count // max_points))
        rows = self._database.rows(
            "SELECT step, at, data FROM (SELECT *, row_number() OVER (ORDER BY step DESC) - 1 AS place "
            "FROM metrics WHERE run=? AND step>?) WHERE place % ? = 0 ORDER BY step",
            run,
            since_step,
            stride,
        )
        return [{"step": row["step"], "at": row["at"], **json.loads(row["data"])} for row in rows]

    def _count(self, run: str, since_step: int) -> int:
        row = self._database.row("SELECT count(*) AS n FROM metrics WHERE run=? AND step>?", run, since_step)
        return int(row["n"]) if row else 0

    def evaluations(self, run: str) -> list[dict[str, Any]]:
        """All finished evaluations, oldest first."""
        rows = self._database.rows("SELECT data FROM evaluations WHERE run=? ORDER BY step", run)
        return [json.loads(row["data"]) for row in rows]

    def samples(self, run: str, limit: int) -> list[dict[str, Any]]:
        """The newest sample groups, newest first."""
        self._runs.revision(run)
        rows = self._database.rows("SELECT step, data FROM samples WHERE run=? ORDER BY id DESC LIMIT ?", run, limit)
        return [{"step": row["step"], **json.loads(row["data"])} for row in rows]

    def clients(self, run: str) -> dict[str, Any]:
        """Per-client figures of the last step."""
        metrics = self._runs.snapshot(run).metrics
        return {} if metrics is None else metrics["clients"]

    def checkpoints(self, run: str) -> list[dict[str, Any]]:
        """Checkpoints written so far, oldest first; older ones may have been deleted since."""
        self._runs.revision(run)
        rows = self._database.rows(
            "SELECT step, at, data FROM events WHERE run=? AND kind='checkpoint' ORDER BY id", run
        )
        return [{"step": row["step"], "at": row["at"], **json.loads(row["data"])} for row in rows]

    def events(self, run: str, after: int, limit: int = 500) -> list[Event]:
        """Events after the one with id ``after``, oldest first."""
        rows = self._database.rows("SELECT * FROM events WHERE run=? AND id>? ORDER BY id LIMIT ?", run, after, limit)
        return [
            Event(id=row["id"], kind=row["kind"], step=row["step"], at=row["at"], data=json.loads(row["data"]))
            for row in rows
        ]

    def last_event(self, run: str) -> int:
        row = self._database.row("SELECT max(id) AS id FROM events WHERE run=?", run)
        return int(row["id"] or 0) if row else 0


def cursor(run: str, event: int) -> str:
    """What a reader sends back as ``Last-Event-ID``."""
    return f"{run}/{event}"


def parse_cursor(run: str, text: str) -> int:
    """The event id in a cursor.

    Raises:
        Invalid: it is no cursor, or one of another run.
    """
    owner, _, number = text.rpartition("/")
    if owner != run or not number.isdigit():
        raise Invalid(
            f"Last-Event-ID {text[:80]!r} is not a cursor of run {run}; send the id of an event of this run, or none "
            "to start from now"
        )
    return int(number)
