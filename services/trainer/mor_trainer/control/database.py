"""Database of run control: runs, events, metrics, samples, dead letters, alerts. SQLite by default, or PostgreSQL.

One run control owns it. The row of ``owner`` has the epoch of the newest one, and every transaction begins with a look
at it: one that was cut off, and lost the history to another, writes nothing any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mor_core import disk_full
from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure
from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from mor_trainer.control.database_address import Address
from mor_trainer.control.history_schema import OWNER, SCHEMAS, statements
from mor_trainer.control.transaction import Row, Transaction

_ROOM_CHARACTERS = 64 << 10
"""Characters that a trial stores to find out whether there is room again: those of an event with a few samples."""
_RETRY_S = 5.0
"""Seconds after which a request that the database could not store may be sent again."""
_LOCK_NUMBER = 0x6D6F72
"""Number of PostgreSQL's advisory lock around a takeover, which may create the tables."""
_CANCELED = "57014"
"""PostgreSQL's code for a statement that took longer than ``statement_timeout``."""


class HistoryUnavailable(Unavailable):
    """The database takes nothing now: its disk is full or fails, it is locked, or it cannot be reached."""

    title = "History not available"


class NotOwner(HistoryUnavailable):
    """Another run control owns the history, or none does yet."""

    title = "Not the owner of the history"


@dataclass(frozen=True)
class Owner:
    """Row of the run control that owns the history."""

    epoch: int
    holder: str
    """Its name; empty after it has given the history back."""
    leased: bool
    """True if it has the lease on the queue server too."""
    renewals: int
    """Rises while it lives."""


class Database:
    """One connection, used by one thread at a time, and the right to use it.

    An SQLite file is written ahead to a log, so that a killed process loses nothing.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._engine = address.engine()
        self._dialect = self._engine.dialect
        self._is_sqlite = self._dialect.name == "sqlite"
        driver: Any = self._dialect.loaded_dbapi
        self._error: type[Exception] = driver.Error
        self._failures = (driver.OperationalError, driver.InterfaceError, driver.InternalError, DBAPIError)
        """Errors of a database that takes nothing now; the last while connecting."""
        self._lock = threading.RLock()
        self._connection: PoolProxiedConnection | None = None
        self._has_owner_table = False
        self._epoch: int | None = None
        """That of this process while it owns the history."""
        self._confirmed_until = 0.0
        """Monotonic time until which no other run control can have taken the history over."""
        self._failure: str | None = None
        """Reason why the last transaction could not be written."""
        self.standby_reason = "this run control has not taken the history over yet; try again"
        """Why this process does not own the history, and what to do."""

    @classmethod
    def of_file(cls, path: Path, holder: str = "alone") -> Database:
        """Open an SQLite file that no other process uses, and own it."""
        database = cls(Address.of_file(path))
        owner = database.owner()
        database.take_over(holder, 0 if owner is None else owner.epoch, leased=False)
        return database

    @property
    def name(self) -> str:
        """Name of the database for messages, without a password."""
        return str(self._address)

    def close(self) -> None:
        """Give the history back and disconnect."""
        with self._lock:
            with suppress(HistoryUnavailable):
                self.release()
            self._disconnect()
            self._engine.dispose()

    def connect(self) -> None:
        """Connect to the database, unless that is done.

        Nobody waits for the lock meanwhile, and others use the connection only once the database has answered.

        Raises:
            HistoryUnavailable: it cannot be reached, or does not answer.
        """
        if self._connection is not None:
            return
        with self._noting_failure():
            connection = self._engine.raw_connection()
            try:
                self._address.prepare(connection.dbapi_connection)
                if not self._is_sqlite and self.owned:  # its disk may hang while the server answers
                    query = "UPDATE owner SET renewals=renewals+1 WHERE epoch=:epoch"
                    Transaction(connection, self._dialect).run(query, epoch=self.epoch)
            except BaseException:
                connection.close()
                raise
        with self._lock:
            if self._connection is None:
                self._connection = connection
                return
        connection.close()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(self._error):
                connection.close()

    # The right to use it

    @property
    def owned(self) -> bool:
        """True if this process owned the history at its last look."""
        return self._epoch is not None

    @property
    def epoch(self) -> int:
        """Number of this ownership, which rises with each; 0 without one."""
        return self._epoch or 0

    def owner(self) -> Owner | None:
        """Return who owns the history; ``None`` before the first.

        Raises:
            HistoryUnavailable: the database cannot be reached.
        """
        self.connect()
        with self._noting_failure(), self._using() as sql:
            if not self._has_owner_table:
                known = (
                    "SELECT 1 FROM sqlite_master WHERE name='owner'"
                    if self._is_sqlite
                    else "SELECT to_regclass('owner')"
                )
                self._has_owner_table = sql.value(known) is not None
            row = sql.row("SELECT * FROM owner") if self._has_owner_table else None
        if row is None:
            return None
        return Owner(row["epoch"], row["holder"], bool(row["leased"]), row["renewals"])

    def take_over(
        self, holder: str, seen: int, *, leased: bool, begin: Callable[[Transaction], None] | None = None
    ) -> bool:
        """Become the owner if the epoch is still ``seen``, and return whether that is done.

        The schema is brought to this release's version in the same transaction, so that a former owner writes
        nothing after that. ``begin`` fills a database that is new.

        Raises:
            HistoryUnavailable: the database takes nothing now.
            Invalid: a newer release wrote it.
        """
        self.connect()
        with self._noting_failure(), self._begun() as sql:
            if not self._is_sqlite:
                sql.value("SELECT pg_advisory_xact_lock(:number)", number=_LOCK_NUMBER)
            for statement in statements(OWNER, sql.dialect):
                sql.run(statement)
            taken = sql.run(
                "UPDATE owner SET epoch=epoch+1, holder=:holder, leased=:leased, renewals=0 WHERE epoch=:seen",
                holder=holder,
                leased=int(leased),
                seen=seen,
            )
            if taken and self._migrate(sql) == 0 and begin is not None:
                begin(sql)
        if taken:
            self._epoch, self._confirmed_until = seen + 1, 0.0
        return bool(taken)

    def _migrate(self, sql: Transaction) -> int:
        """Bring the schema to this release's version, and return the version that it had; 0 for a new database."""
        found: int = sql.value("PRAGMA user_version" if self._is_sqlite else "SELECT version FROM owner")
        if found > len(SCHEMAS):
            raise Invalid(
                f"{self.name} has schema {found}, this trainer reads {len(SCHEMAS)}; run the version that wrote it"
            )
        for schema in SCHEMAS[found:]:
            for statement in statements(schema, sql.dialect):
                sql.run(statement)
        version = len(SCHEMAS)
        if self._is_sqlite:
            sql.run(f"PRAGMA user_version={version}")
        else:
            sql.run("UPDATE owner SET version=:version", version=version)
        return found

    def renew(self, *, leased: bool, until: float) -> None:
        """Show that the owner lives. With ``leased``, nobody takes the history over before ``until``, a monotonic time.

        Raises:
            NotOwner: another run control has taken it over.
            HistoryUnavailable: the database takes nothing now.
        """
        with self._noting_failure(), self._using() as sql:
            query = "UPDATE owner SET renewals=renewals+1, leased=:leased WHERE epoch=:epoch"
            if not sql.run(query, leased=int(leased), epoch=self.epoch):
                raise self._superseded(sql)
            if leased:
                self._confirmed_until = until

    def release(self) -> None:
        """Give the history back, so that another run control need not wait.

        Raises:
            HistoryUnavailable: the database takes nothing now; this process does not own it any more all the same.
        """
        with self._lock:
            epoch, self._epoch = self._epoch, None
            if epoch is not None:
                with self._noting_failure(), self._using() as sql:
                    sql.run("UPDATE owner SET holder='' WHERE epoch=:epoch", epoch=epoch)

    def check(self) -> None:
        """Check that what this process knows is the truth: that no other one has taken the history over.

        Raises:
            NotOwner: another run control owns the history.
            HistoryUnavailable: the database cannot be asked.
        """
        if self._epoch is None:
            raise self._not_owner()
        if time.monotonic() >= self._confirmed_until:
            with self._noting_failure(), self._using() as sql:
                self._check_epoch(sql)

    def _check_epoch(self, sql: Transaction) -> None:
        # PostgreSQL: a takeover waits for transactions that hold the row, and later ones see its epoch. SQLite has one
        # writer at a time.
        found = sql.value("SELECT epoch FROM owner" if self._is_sqlite else "SELECT epoch FROM owner FOR SHARE")
        if found != self._epoch:
            raise self._superseded(sql)

    def _superseded(self, sql: Transaction) -> NotOwner:
        """Note that another run control owns the history, and return the error."""
        self._epoch = None
        holder = sql.value("SELECT holder FROM owner")
        self.standby_reason = f"run control {holder} has taken the history over from this one; send requests to it"
        return self._not_owner()

    def _not_owner(self) -> NotOwner:
        return NotOwner(self.standby_reason, _RETRY_S)

    # Use

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Apply all statements of the body, or none.

        Raises:
            NotOwner: another run control owns the history.
            HistoryUnavailable: the database takes nothing now.
        """
        if self._epoch is None:
            raise self._not_owner()
        with self._noting_failure(), self._begun() as sql:
            self._check_epoch(sql)
            yield sql

    def rows(self, query: str, /, **values: Any) -> Sequence[Row]:
        """Return all rows of a query.

        Raises:
            HistoryUnavailable: the database cannot be read now, or another run control owns it.
        """
        self.check()
        with self._noting_failure(), self._using() as sql:
            return sql.rows(query, **values)

    def row(self, query: str, /, **values: Any) -> Row | None:
        """Return the first row of a query.

        Raises:
            HistoryUnavailable: the database cannot be read now, or another run control owns it.
        """
        self.check()
        with self._noting_failure(), self._using() as sql:
            return sql.row(query, **values)

    def write(self, query: str, /, **values: Any) -> int:
        """Run one statement in a transaction of its own, and return the number of rows that it changed.

        Raises:
            HistoryUnavailable: the database takes nothing now, or another run control owns it.
        """
        with self.transaction() as sql:
            return sql.run(query, **values)

    @contextmanager
    def _begun(self) -> Iterator[Transaction]:
        """Apply all statements of the body or none, whoever owns the history."""
        with self._using() as sql, disk_full.watched("history"):
            sql.run("BEGIN IMMEDIATE" if self._is_sqlite else "BEGIN")
            try:
                yield sql
                sql.run("COMMIT")
            except BaseException:
                with suppress(self._error):  # SQLite itself rolls back after some errors, such as a full disk
                    sql.run("ROLLBACK")
                raise
            self._failure = None

    @contextmanager
    def _using(self) -> Iterator[Transaction]:
        with self._lock:
            if self._connection is None:
                raise self._unavailable()
            yield Transaction(self._connection, self._dialect)

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            with self._lock:
                self._failure = describe_failure(getattr(error, "orig", None) or error)
                used: Any = self._connection and self._connection.dbapi_connection
                lost = used is not None and self._dialect.is_disconnect(error, used, None)  # type: ignore[arg-type]
                if lost or getattr(error, "sqlstate", None) == _CANCELED:
                    self._disconnect()  # ``connect`` tries again, in the background
            raise self._unavailable() from error

    def _unavailable(self) -> HistoryUnavailable:
        return HistoryUnavailable(f"the history cannot be used now ({self._failure}); {self._address.cure}", _RETRY_S)

    def problem(self) -> str | None:
        """Return why nothing can be stored now; ``None`` where the last transaction was stored, or one can be now."""
        with self._lock:
            if self._failure is not None and self._epoch is not None:
                with suppress(HistoryUnavailable), self._without_waiting():
                    self._try_room()
            return self._failure and str(self._unavailable())

    def _try_room(self) -> None:
        """Store as much as a large event has, and delete it. What the disk refuses is noted, and what it takes too."""
        with self.transaction() as sql:
            sql.run("CREATE TABLE IF NOT EXISTS room (content TEXT)")
            sql.run("INSERT INTO room VALUES (:content)", content=_ROOM_CHARACTERS * "x")
        self.write("DROP TABLE room")

    @contextmanager
    def _without_waiting(self) -> Iterator[None]:
        """Wait for no other process, such as a backup, which a probe of readiness would do."""
        if not self._is_sqlite:
            yield
            return
        with self._using() as sql:
            wait_ms = sql.value("PRAGMA busy_timeout")
            sql.run("PRAGMA busy_timeout=0")
            try:
                yield
            finally:
                sql.run(f"PRAGMA busy_timeout={wait_ms}")
