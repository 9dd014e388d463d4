"""Statements on run control's database.

A query is SQL that SQLite and PostgreSQL both take, with ``:name`` for a value. It goes to the driver directly, because
an event takes a dozen statements, and each costs several times as much through SQLAlchemy's results.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import PoolProxiedConnection
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.engine.interfaces import Dialect

Row = Mapping[str, Any]
"""Row of a result: values by the names of their columns."""
_PSYCOPG: Dialect = psycopg.dialect()  # type: ignore[no-untyped-call]


@functools.lru_cache(maxsize=512)
def _for_psycopg(query: str) -> str:
    return str(sqlalchemy.text(query).compile(dialect=_PSYCOPG))


class Transaction:
    """Statements on the database, one after the other."""

    def __init__(self, connection: PoolProxiedConnection, dialect: Dialect) -> None:
        self._driver: Any = connection.dbapi_connection
        self._errors: Any = dialect.loaded_dbapi
        self.dialect = dialect.name
        """``sqlite`` or ``postgresql``."""

    @property
    def refusals(self) -> tuple[type[Exception], ...]:
        """Errors for a row that does not fit."""
        return (self._errors.DataError, self._errors.IntegrityError)

    def _execute(self, query: str, values: dict[str, Any]) -> Any:
        if self.dialect == "sqlite":
            return self._driver.execute(query, values)
        return self._driver.execute(_for_psycopg(query), _stored(values))

    def run(self, query: str, /, **values: Any) -> int:
        """Run a statement and return the number of rows that it changed."""
        changed: int = self._execute(query, values).rowcount
        return changed

    def run_all(self, query: str, rows: list[dict[str, Any]]) -> None:
        """Run a statement once for each of ``rows``."""
        if self.dialect == "sqlite":
            self._driver.executemany(query, rows)
        else:
            self._driver.cursor().executemany(_for_psycopg(query), [_stored(row) for row in rows])

    def rows(self, query: str, /, **values: Any) -> Sequence[Row]:
        """Return all rows of a query."""
        found: list[Row] = self._execute(query, values).fetchall()
        return found

    def row(self, query: str, /, **values: Any) -> Row | None:
        """Return the first row of a query."""
        found: Row | None = self._execute(query, values).fetchone()
        return found

    def value(self, query: str, /, **values: Any) -> Any:
        """Return the first column of the first row; ``None`` where there is none."""
        row: Any = self.row(query, **values)
        if row is None:
            return None
        return row[0] if self.dialect == "sqlite" else next(iter(row.values()))


def _stored(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as PostgreSQL stores them: a text without NUL, and as a plain one, because its client knows no
    subclass of ``str``."""
    return {
        name: value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value
        for name, value in values.items()
    }
