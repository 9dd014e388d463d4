"""Database of run control, a file beside the checkpoints: runs, events, metrics, samples, dead letters, alerts."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mor_core import disk_full
from mor_core.errors import Invalid
from mor_core.failures import describe_failure

_FIRST = """
CREATE TABLE runs (
  id TEXT PRIMARY KEY,
  spec TEXT NOT NULL,
  state TEXT NOT NULL,
  desired TEXT NOT NULL,
  attempt INTEGER NOT NULL DEFAULT 0,
  worker TEXT,
  lease_until REAL,           -- of earlier versions; leases are in memory
  step INTEGER,
  weights_version INTEGER,
  gate_version INTEGER,
  created_at REAL NOT NULL,
  started_at REAL,
  updated_at REAL NOT NULL,
  finished_at REAL,
  error TEXT,
  final TEXT,
  revision INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE attempts (
  run TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  from_step INTEGER,          -- null until the worker reported where it begins
  seen INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (run, attempt)
);
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  run TEXT NOT NULL,
  attempt INTEGER NOT NULL,   -- 0: run control's own
  sequence INTEGER,
  kind TEXT NOT NULL,
  step INTEGER,
  at REAL NOT NULL,
  data TEXT NOT NULL,
  UNIQUE (run, attempt, sequence)
);
CREATE INDEX events_of_run ON events (run, id);
CREATE TABLE metrics (
  run TEXT NOT NULL,
  step INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  at REAL NOT NULL,
  data TEXT NOT NULL,
  PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE TABLE evaluations (
  run TEXT NOT NULL,
  step INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  at REAL NOT NULL,
  data TEXT NOT NULL,
  PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE TABLE samples (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  run TEXT NOT NULL,
  step INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  data TEXT NOT NULL
);
CREATE INDEX samples_of_run ON samples (run, id);
"""

_SECOND = """
ALTER TABLE runs ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0;  -- highest event that is no longer kept
CREATE TABLE thumbnails (
  run TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  content BLOB NOT NULL,
  PRIMARY KEY (run, sha256)
);
CREATE TABLE letters (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  run TEXT NOT NULL,
  step INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  at REAL NOT NULL,
  group_id TEXT NOT NULL,
  stage TEXT,
  stream TEXT,
  reason TEXT NOT NULL,
  attempts INTEGER,
  record TEXT,
  replay TEXT NOT NULL DEFAULT 'no',
  replay_asked_by TEXT,
  replay_step INTEGER         -- at which the worker settled it
);
CREATE INDEX letters_of_run ON letters (run, id);
CREATE TABLE alerts (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  run TEXT NOT NULL,
  name TEXT NOT NULL,
  reason TEXT NOT NULL,
  step INTEGER,
  first_at REAL NOT NULL,
  last_at REAL NOT NULL,
  count INTEGER NOT NULL DEFAULT 1,
  acknowledged_at REAL,
  acknowledged_by TEXT,
  note TEXT,
  webhook TEXT NOT NULL,
  webhook_due REAL,           -- when the next attempt is made; null unless waiting
  webhook_attempts INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX alerts_of_run ON alerts (run, name, id);
CREATE INDEX alerts_due ON alerts (webhook_due);
"""

_THIRD = """
ALTER TABLE runs ADD COLUMN creation TEXT;  -- digest of the caller's name and Idempotency-Key
CREATE UNIQUE INDEX runs_by_creation ON runs (creation);
"""

_FOURTH = """
ALTER TABLE runs ADD COLUMN preflight TEXT;  -- progress of the check of the prompts
"""

SCHEMAS = (_FIRST, _SECOND, _THIRD, _FOURTH)
"""Statements that lead from each version of the schema to the next."""


_LOCK_TIMEOUT_S = 10.0
"""Wait for another process that holds the file, such as a backup."""
_ROOM_BYTES = 64 << 10
"""Bytes that a trial stores to find out whether the disk has room again: those of an event with a few samples."""


class Database:
    """One SQLite file with one connection, used by one thread at a time.

    It writes ahead to a log, so that a killed process loses nothing.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=_LOCK_TIMEOUT_S)
        self._connection.row_factory = sqlite3.Row
        self._lock = threading.RLock()
        self._failure: str | None = None
        """Reason why the last transaction could not be written."""
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        found = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found > len(SCHEMAS):
            raise Invalid(
                f"{path} has schema {found}, this trainer reads {len(SCHEMAS)}; run the version that wrote it"
            )
        for version, schema in enumerate(SCHEMAS[found:], found + 1):
            self._connection.executescript(f"BEGIN; {schema} PRAGMA user_version={version}; COMMIT;")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Apply all statements of the body, or none.

        Raises:
            OperationalError: the database takes nothing now, because its disk is full or fails, or it is locked.
        """
        with self._lock, self._noting_failure():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself rolls back after some errors, such as a full disk
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            with disk_full.watched("history"):
                yield
        except sqlite3.OperationalError as error:
            self._failure = describe_failure(error)
            raise
        self._failure = None

    def problem(self) -> str | None:
        """Return why nothing can be stored now; ``None`` where the last transaction was stored, or one can be now."""
        with self._lock:
            if self._failure is None:
                return None
            wait_ms = self._connection.execute("PRAGMA busy_timeout").fetchone()[0]
            self._connection.execute("PRAGMA busy_timeout=0")  # a probe of readiness does not wait for a backup
            with contextlib.suppress(sqlite3.OperationalError):
                self._try_room()
            self._connection.execute(f"PRAGMA busy_timeout={wait_ms}")
            return self._failure

    def _try_room(self) -> None:
        """Store as much as a large event has, and delete it. What the disk refuses is noted, and what it takes too."""
        with self.transaction() as sql:
            sql.execute("CREATE TABLE IF NOT EXISTS room (content BLOB)")
            sql.execute("INSERT INTO room VALUES (zeroblob(?))", (_ROOM_BYTES,))
        with self.transaction() as sql:
            sql.execute("DROP TABLE room")

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Run a statement and return all its rows."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        """Run a statement and return its first row."""
        with self._lock:
            found: sqlite3.Row | None = self._connection.execute(query, values).fetchone()
            return found
