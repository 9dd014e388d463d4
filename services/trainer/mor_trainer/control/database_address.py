"""Address of run control's database, and how to connect to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from mor_core.errors import Invalid
from sqlalchemy import URL, Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from mor_trainer.config import ControlSettings

_LOCK_TIMEOUT_S = 3.0
"""Wait for another process that holds the file. Run control answers nothing meanwhile."""
_SCHEMES = ("postgresql", "postgresql+psycopg")
_PATIENCE: Mapping[str, Any] = {
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Options of libpq, seconds and milliseconds, that the address does not set: by them the connection of a server that is
cut off ends also while nobody waits for an answer."""
_SESSION = (
    # Below BoundedConnection.answer_s, so that a slow server keeps its connection.
    "SET statement_timeout = '3s'",
    "SET lock_timeout = '3s'",
    # A process that hangs within a transaction keeps nobody from taking the history over.
    "SET idle_in_transaction_session_timeout = '10s'",
)


def history_address(settings: ControlSettings) -> Address:
    """Return the address of the history.

    Raises:
        Invalid: ``MOR_DATABASE_URL`` names no database of a kind that run control uses.
    """
    if settings.database_url is None:
        return Address.of_file(settings.default_history)
    return Address.parse(settings.database_url.get_secret_value())


@dataclass(frozen=True)
class Address:
    """Address of an SQLite file or of a PostgreSQL database."""

    url: URL

    @classmethod
    def of_file(cls, path: Path) -> Address:
        return cls(URL.create("sqlite", database=str(path)))

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address that ``text`` is.

        Raises:
            Invalid: it names no database of these kinds.
        """
        wanted = "wanted: postgresql://USER:PASSWORD@HOST:5432/NAME?sslmode=verify-full, or sqlite:////FOLDER/history.sqlite3"
        try:
            url = sqlalchemy.make_url(text)
        except (ArgumentError, ValueError):
            raise Invalid(f"the database's address cannot be read; {wanted}") from None
        if url.drivername in _SCHEMES:
            if not url.database:
                raise Invalid(f"the database's address names no database; {wanted}")
            return cls(url.set(drivername="postgresql+psycopg"))
        if url.drivername != "sqlite":
            raise Invalid(f"the database's address begins with {url.drivername[:40]}://; {wanted}")
        if not url.database or url.database == ":memory:" or url.query:
            raise Invalid(f"the database's address names no plain file; {wanted}")
        return cls(url)

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True) if self.file is None else str(self.file)

    @property
    def file(self) -> Path | None:
        """The SQLite file; ``None`` for PostgreSQL."""
        return Path(self.url.database or "") if self.url.drivername == "sqlite" else None

    @property
    def cure(self) -> str:
        """Remedy for a database that takes nothing."""
        if self.file is None:
            return "check the PostgreSQL server of MOR_DATABASE_URL, and its disk"
        return "make room on the disk of MOR_RUNS_DIR, or of MOR_DATABASE_URL where that is set"

    def engine(self) -> Engine:
        """Return the engine, which commits by itself: ``Database`` says where a transaction begins and ends.

        Raises:
            Invalid: PostgreSQL's client is not installed.
        """
        if (file := self.file) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            options: dict[str, Any] = {"check_same_thread": False, "timeout": _LOCK_TIMEOUT_S}
        else:
            options = {name: value for name, value in _PATIENCE.items() if name not in self.url.query}
        try:
            engine = sqlalchemy.create_engine(
                self.url, connect_args=options, isolation_level="AUTOCOMMIT", poolclass=NullPool, hide_parameters=True
            )
            if self.file is None:
                from mor_trainer.control.bounded_connection import BoundedConnection

                sqlalchemy.event.listen(
                    engine, "do_connect", lambda _dialect, _record, _args, more: BoundedConnection.connect(**more)
                )
            return engine
        except (NoSuchModuleError, ImportError):
            raise Invalid(
                "MOR_DATABASE_URL names a PostgreSQL server and its client is missing; install mor-trainer[postgresql]"
            ) from None

    def prepare(self, connection: Any) -> None:
        """Set up a new connection of the driver."""
        if self.file is None:
            from psycopg.rows import dict_row

            connection.row_factory = dict_row
        else:
            connection.row_factory = sqlite3.Row
        settings = _SESSION if self.file is None else ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL")
        for setting in settings:
            connection.execute(setting)
