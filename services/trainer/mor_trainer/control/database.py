"""Database of run control, a file beside the checkpoints: runs, events, metrics, samples, dead letters, alerts."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid

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


class Database:
    """One SQLite file with one connection, used by one thread at a time.

    It writes ahead to a log, so that a killed process loses nothing.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=_LOCK_TIMEOUT_S)
        self._connection.row_factory = sqlite3.Row
        self._lock = threading.RLock()
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
        """Apply all statements of the body, or none."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Run a statement and return all its rows."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        """Run a statement and return its first row."""
        with self._lock:
            found: sqlite3.Row | None = self._connection.execute(query, values).fetchone()
            return found
