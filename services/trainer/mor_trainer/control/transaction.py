"""Statements on run control's database."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, CursorResult, RowMapping, TextClause


@functools.lru_cache(maxsize=512)
def _statement(query: str) -> TextClause:
    return sqlalchemy.text(query)


class Transaction:
    """Statements on the database. A query is SQL of SQLite and PostgreSQL, with ``:name`` for a value."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.dialect = connection.dialect.name
        """``sqlite`` or ``postgresql``."""

    def _execute(self, query: str, values: dict[str, Any]) -> CursorResult[Any]:
        return self._connection.execute(_statement(query), self._stored(values))

    def _stored(self, values: dict[str, Any]) -> dict[str, Any]:
        if self.dialect == "sqlite":
            return values
        # PostgreSQL stores no NUL in a text, and its client knows no subclass of str.
        return {
            name: value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value
            for name, value in values.items()
        }

    def run(self, query: str, /, **values: Any) -> int:
        """Run a statement and return the number of rows that it changed."""
        return self._execute(query, values).rowcount

    def run_all(self, query: str, rows: list[dict[str, Any]]) -> None:
        """Run a statement once for each of ``rows``."""
        self._connection.execute(_statement(query), [self._stored(row) for row in rows])

    def rows(self, query: str, /, **values: Any) -> Sequence[RowMapping]:
        """Return all rows of a query."""
        return self._execute(query, values).mappings().all()

    def row(self, query: str, /, **values: Any) -> RowMapping | None:
        """Return the first row of a query."""
        return self._execute(query, values).mappings().first()

    def value(self, query: str, /, **values: Any) -> Any:
        """Return the first column of the first row; ``None`` where there is none."""
        return self._execute(query, values).scalar()
