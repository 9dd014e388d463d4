"""Store of the runs: their states, the workers that hold them, and the requests of their operators.

::

    queued ──claim──> running <──> paused          running, paused ──lease over──> queued
      │                  │            │
      └─────stop─────────┴────────────┴──> stopped        running ──> finished | failed
    stopped, failed ──resume──> queued (continues from the last checkpoint)
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import time
from collections.abc import Iterable
from typing import Any

from mor_core.blobs import is_run_id
from mor_core.errors import Conflict, NotFound
from mor_core.preflight_status import PreflightStatus
from mor_core.run_alerts import AlertName
from mor_core.runs import Claim, Desired, Heartbeat, HeartbeatReply, RunSnapshot, RunSpec, RunState
from mor_core.stored import StoredEntries
from mor_core.wire import Count
from pydantic import TypeAdapter

from mor_trainer.control import run_rows
from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.database import Database, HistoryUnavailable
from mor_trainer.control.dead_letter_store import DeadLetterStore
from mor_trainer.control.disk_waits import DiskWaits
from mor_trainer.control.late_writes import LateWrites
from mor_trainer.control.run_snapshot import last_event, read_snapshot
from mor_trainer.control.transaction import Transaction

_HELD = (RunState.running, RunState.paused)
"""States in which a worker holds the run."""
_COUNT: TypeAdapter[int] = TypeAdapter(Count)
_ROWS = StoredEntries("history", largest=64 << 20)
_AFTER_LOSS: dict[Desired, RunState] = {"run": RunState.queued, "pause": RunState.paused, "stop": RunState.stopped}
_READABLE = "CAST(id AS TEXT)=id"
"""Condition for rows whose id is a text, which in SQLite may be anything."""
_REMEMBERED_S = 3600.0
"""Age, seconds, up to which a run that ended before this process began counts as one that ended at its start."""


class RunStore:
    """All runs. Each change of a run raises its ``revision``, which its ETag contains.

    Leases are kept in memory, by the monotonic clock: a change of the system's clock neither ends nor extends one. A
    run that a worker holds when this process starts has a whole lease from then on.
    """

    def __init__(self, database: Database, alerts: AlertStore, dead_letters: DeadLetterStore, lease_s: float) -> None:
        self._database = database
        self._alerts = alerts
        self._dead_letters = dead_letters
        self._lease_s = lease_s
        self.generation = 0
        """Rises with every change of any run."""
        self._lease_ends: dict[str, float] = {}
        """Run that a worker holds -> monotonic time at which its lease ends."""
        self._late = LateWrites()
        self._disk_waits = DiskWaits(self._alert_disk_full, self._end_disk_full)
        self._ended_at: dict[str, float] = {}
        """Run -> monotonic time at which it ended."""
        self._snapshots: dict[str, tuple[int, RunSnapshot]] = {}
        self._revisions: dict[str, int] = {}
        if database.owned:
            self.load()

    def load(self) -> None:
        """Read what is kept in memory anew: this process has become the owner of the database.

        Raises:
            HistoryUnavailable: the database cannot be read now, or another run control owns it.
        """
        ended = self._database.rows("SELECT id FROM runs WHERE finished_at > :at", at=time.time() - _REMEMBERED_S)
        known = self._database.rows("SELECT id, revision FROM runs")
        self._ended_at = {row["id"]: time.monotonic() for row in ended}
        self._revisions = {row["id"]: row["revision"] if isinstance(row["revision"], int) else 0 for row in known}
        self._snapshots.clear()
        self._lease_ends.clear()
        self._late.clear()
        self._disk_waits = DiskWaits(self._alert_disk_full, self._end_disk_full)
        self.generation += 1

    def created(self, creation: str, spec: RunSpec) -> str | None:
        """Return the run of an earlier request with the digest ``creation``, or ``None``.

        Raises:
            Conflict: that request had another specification.
        """
        return run_rows.created_run(self._database, creation, spec)

    def create(self, spec: RunSpec, creation: str | None = None) -> str:
        """Queue a run and return its id. ``creation``: digest by which a repeated request finds it; none has it yet."""
        run, now = f"{spec.name}-{secrets.token_hex(3)}", time.time()
        with self._database.transaction() as sql:
            sql.run(
                "INSERT INTO runs (id, spec, state, desired, created_at, updated_at, creation) "
                "VALUES (:id, :spec, 'queued', 'run', :now, :now, :creation)",
                id=run,
                spec=spec.model_dump_json(),
                now=now,
                creation=creation,
            )
            run_rows.add_event(sql, run, {"state": RunState.queued})
        self._revisions[run] = 0
        self.generation += 1
        return run

    def request(self, run: str, desired: Desired) -> None:
        """Request that a run pauses, continues or stops.

        Raises:
            NotFound: no such run.
            Conflict: the state of the run does not allow it.
        """
        row = run_rows.readable_row(self._database, run)
        state = row.state
        if desired == "run" and state is RunState.finished:
            raise Conflict(f"run {run} is finished; create a new run to continue from {row.final}")
        if desired != "run" and state.over:
            participle = {"pause": "paused", "stop": "stopped"}[desired]
            raise Conflict(f"run {run} is {state}; only a run that is queued, running or paused can be {participle}")
        if row.worker is not None:
            self._change(run, desired=desired)
        elif desired == "run":
            self._change(run, desired="run", state=RunState.queued, error=None, finished_at=None, archived_at=None)
        elif desired == "pause":
            self._change(run, desired="pause", state=RunState.paused)
        else:
            self._change(run, desired="stop", state=RunState.stopped, finished_at=time.time())

    def ids(self, *, archived: bool | None = None) -> list[str]:
        """List the ids of all runs, newest first: those that are archived, those that are not, or both."""
        where = {None: "", True: "WHERE archived_at IS NOT NULL", False: "WHERE archived_at IS NULL"}[archived]
        return [row["id"] for row in self._database.rows(f"SELECT id FROM runs {where} ORDER BY created_at DESC, id")]  # noqa: S608

    def active(self, linger_s: float) -> list[str]:
        """List the runs that are active or ended less than ``linger_s`` ago."""
        ended_since = time.monotonic() - linger_s
        lingering = {run for run, at in self._ended_at.items() if at > ended_since}
        # An earlier release set no end where a run was to be stopped and its worker died.
        over = ", ".join(f"'{state}'" for state in RunState if state.over)
        rows = self._database.rows(f"SELECT id FROM runs WHERE finished_at IS NULL AND state NOT IN ({over})")  # noqa: S608
        return [*lingering.union(row["id"] for row in rows)]

    def ended(self) -> dict[str, float]:
        """Return the runs that are over, and the Unix time at which each ended."""
        rows = self._database.rows("SELECT id, finished_at FROM runs WHERE finished_at IS NOT NULL AND worker IS NULL")
        named = [row for row in rows if is_run_id(row["id"])]
        return {row["id"]: row["finished_at"] for row in named if isinstance(row["finished_at"], float)}

    def revision(self, run: str) -> int:
        """Return a number that rises with every change of the run.

        Raises:
            NotFound: no such run.
        """
        self._database.check()
        try:
            return self._revisions[run]
        except KeyError:
            raise NotFound(f"no run {run!r}; 'mor run list' shows all") from None

    def version(self, run: str) -> str:
        """Return a text that changes with every change of the run, and with the run control that owns the history.

        Raises:
            NotFound: no such run.
        """
        return f"{self._database.epoch}.{self.revision(run)}"

    def snapshot(self, run: str) -> RunSnapshot:
        """Return the state of a run.

        Raises:
            NotFound: no such run.
            Conflict: it cannot be read.
        """
        revision = self.revision(run)
        known = self._snapshots.get(run)
        if known is None or known[0] != revision:
            read = functools.partial(read_snapshot, self._database, disk_full=self._disk_waits.of(run))
            snapshot = run_rows.RUN_ROWS.parse(run, run_rows.row_of(self._database, run), read)
            if snapshot is None:
                raise run_rows.unreadable(run)
            known = self._snapshots[run] = (revision, snapshot)
        return known[1]

    def worker(self, run: str) -> str | None:
        """Return the worker that holds the run."""
        worker: str | None = run_rows.row_of(self._database, run)["worker"]
        return worker

    def last_event(self, run: str) -> int:
        """Return the id of the run's newest event; 0 before the first."""
        return last_event(self._database, run)

    def spec(self, run: str) -> RunSpec:
        """Return the specification of a run.

        Raises:
            NotFound: no such run.
            Conflict: it cannot be read.
        """
        return run_rows.readable_row(self._database, run).spec

    def readable(self, runs: Iterable[str]) -> list[RunSnapshot]:
        """Return the snapshots of those of ``runs`` that can be read."""
        found = []
        for run in runs:
            with contextlib.suppress(Conflict):
                found.append(self.snapshot(run))
        return found

    def claim(self, worker: str) -> Claim | None:
        """Give the oldest queued run to ``worker``; returns None if no run is queued."""
        self.requeue_lost()
        oldest = f"SELECT * FROM runs WHERE state='queued' AND {_READABLE} ORDER BY rowid LIMIT 1"  # noqa: S608
        while (row := self._database.row(oldest)) is not None and (found := run_rows.parse_row(row)) is None:
            self._fail_unreadable(row["id"])
        if row is None:
            return None
        assert found is not None
        now, attempt = time.time(), found.attempt + 1
        # A claim that could not be stored may have left its number here.
        self._database.write(
            "INSERT INTO attempts (run, attempt) VALUES (:run, :attempt) ON CONFLICT DO NOTHING",
            run=row["id"],
            attempt=attempt,
        )
        self._change(
            row["id"],
            state=RunState.running,
            attempt=attempt,
            worker=worker,
            started_at=row["started_at"] or now,
        )
        self._renew(row["id"])
        return Claim(
            run=row["id"],
            spec=found.spec,
            attempt=attempt,
            lease_s=self._lease_s,
            weights_version=run_rows.RUN_ROWS.parse(row["id"], row["weights_version"], _COUNT.validate_python),
        )

    def beat(self, run: str, heartbeat: Heartbeat) -> HeartbeatReply:
        """Record a worker's report, renew its lease, and return the desired state of the run.

        Raises:
            Conflict: another attempt holds the run, or none; or it cannot be read.
            HistoryUnavailable: the database takes nothing now, and the report ends the run or hands it back.
        """
        row = run_rows.readable_row(self._database, run)
        if row.worker is None or row.attempt != heartbeat.attempt:
            raise Conflict(
                f"run {run} is {row.state} and not held by attempt {heartbeat.attempt}; claim a run before working"
            )
        if heartbeat.state in _HELD:
            self._renew(run)
            if heartbeat.state != row.state:
                with contextlib.suppress(HistoryUnavailable):  # the lease is renewed; the next heartbeat repeats it
                    self._change(run, state=heartbeat.state)
        else:
            ended = time.time() if heartbeat.state.over else None
            self._change(
                run,
                alert="run_failed" if heartbeat.state is RunState.failed else None,
                state=heartbeat.state,
                worker=None,
                error=heartbeat.error,
                final=heartbeat.final,
                finished_at=ended,
            )
        if self._disk_waits.note(run, heartbeat.disk_full if heartbeat.state in _HELD else None):
            self._bump(run)
        if (preflight := heartbeat.preflight) is not None:
            self._late.write(("preflight", run), lambda: self._record_preflight(run, preflight))
        if (lost := heartbeat.events_lost) is not None:
            raised = "UPDATE attempts SET seen=:seen WHERE run=:run AND attempt=:attempt AND seen<:seen"
            self._late.write(
                ("lost", run),
                lambda: self._database.write(raised, seen=lost, run=run, attempt=heartbeat.attempt),
            )
        seen = self._database.row(
            "SELECT seen FROM attempts WHERE run=:run AND attempt=:attempt", run=run, attempt=heartbeat.attempt
        )
        return HeartbeatReply(
            desired=row.desired,
            events_seen=(_ROWS.parse(run, seen["seen"], _COUNT.validate_python) or 0) if seen else 0,
            replay=self._dead_letters.requested_replays(run),
        )

    def _record_preflight(self, run: str, status: PreflightStatus) -> None:
        """Set the progress of the check of the prompts, which is an event too."""
        with self._database.transaction() as sql:
            self._set(sql, run, {"preflight": status.model_dump_json()})
            run_rows.add_event(
                sql, run, status.model_dump(mode="json", include={"state", "rows", "total", "bad"}), kind="preflight"
            )

    def requeue_lost(self) -> list[str]:
        """Release the runs whose lease is over; all but those to be stopped are queued and resume from a checkpoint."""
        self._late.flush()
        lost = []
        for row in self._database.rows(f"SELECT * FROM runs WHERE worker IS NOT NULL AND {_READABLE}"):  # noqa: S608
            if (found := run_rows.parse_row(row)) is None:  # its worker's heartbeats are refused
                self._fail_unreadable(row["id"])
                continue
            if row["id"] not in self._lease_ends:
                self._renew(row["id"])
            if time.monotonic() < self._lease_ends[row["id"]]:
                continue
            lost.append(row["id"])
            state = _AFTER_LOSS[found.desired]
            reason = f"its worker sent no heartbeat for {self._lease_s:g} s; the run resumes from its last checkpoint"
            ended = {"finished_at": time.time()} if state.over else {}
            self._change(row["id"], alert="worker_lost", state=state, worker=None, error=reason, **ended)
        return lost

    def _renew(self, run: str) -> None:
        self._lease_ends[run] = time.monotonic() + self._lease_s

    def _fail_unreadable(self, run: str) -> None:
        """End a run whose row does not fit, so that it keeps no other one from being claimed."""
        columns = {"state": RunState.failed, "desired": "run", "worker": None}
        self._change(run, alert="run_failed", error=str(run_rows.unreadable(run)), finished_at=time.time(), **columns)

    def _alert_disk_full(self, run: str, waits: str) -> None:
        """Raise an alert about a full disk, on which the history may be too."""
        self._late.write(("disk full", run), lambda: self.warn(run, "disk_full", waits))

    def _end_disk_full(self, run: str) -> None:
        self._late.write(("disk has room", run), lambda: self._end_alert_of_disk(run))

    def warn(self, run: str, name: AlertName, reason: str) -> None:
        """Raise an alert of run control's own, also as an event of the run."""
        with self._database.transaction() as sql:
            if (row := sql.row("SELECT step FROM runs WHERE id=:id", id=run)) is None:  # it was deleted meanwhile
                return
            self._alerts.raise_in(sql, run, name, reason, step=row["step"])
            run_rows.add_event(sql, run, {"name": name, "reason": reason}, kind="alert")
            self._set(sql, run, {})

    def _end_alert_of_disk(self, run: str) -> None:
        if self._disk_waits.of(run) is not None:  # it waits again by now
            return
        name, why = "disk_full", "the run no longer waits for room"
        with self._database.transaction() as sql:
            self._alerts.end_in(sql, run, name, why, at=time.time())
            run_rows.add_event(sql, run, {"name": name, "reason": why, "over": True}, kind="alert")
            self._set(sql, run, {})

    def touch_in(self, sql: Transaction, run: str, **columns: Any) -> None:
        """Set columns of the run's progress and raise its revision, within the transaction of ``sql``."""
        self._set(sql, run, columns)

    def _change(self, run: str, *, alert: AlertName | None = None, **columns: Any) -> None:
        """Set columns; a change of state or of the request becomes an event too, and with ``alert`` an alert."""
        with self._database.transaction() as sql:
            if columns.get("state") is RunState.running:
                columns.setdefault("error", None)
            self._set(sql, run, columns)
            changed = {name: columns[name] for name in ("state", "desired", "error", "final") if columns.get(name)}
            run_rows.add_event(sql, run, changed)
            if alert is not None:
                self._alerts.raise_in(sql, run, alert, columns.get("error") or "no reason was given")
        # Only now: a transaction that a full disk refuses changes nothing here either.
        if columns.get("worker", "") is None:
            self._lease_ends.pop(run, None)
            self._disk_waits.note(run, None)
        if "finished_at" in columns:
            self._ended_at.pop(run, None)
        if columns.get("finished_at") is not None:
            self._ended_at[run] = time.monotonic()

    def _set(self, sql: Transaction, run: str, columns: dict[str, Any]) -> None:
        columns = {**columns, "updated_at": time.time()}
        names = ", ".join(f"{name}=:{name}" for name in columns)
        sql.run(f"UPDATE runs SET {names}, revision=revision+1 WHERE id=:id", id=run, **columns)  # noqa: S608
        self._bump(run)

    def forget(self, run: str) -> None:
        """Forget what is in memory of a run whose row was deleted."""
        self._revisions.pop(run, None)
        self._snapshots.pop(run, None)
        self._ended_at.pop(run, None)
        self.generation += 1

    def _bump(self, run: str) -> None:
        if run in self._revisions:  # it may have been deleted
            self._revisions[run] += 1
        self.generation += 1
