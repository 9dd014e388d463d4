"""Copies of the history: of a former SQLite file into a new database, and backups of the file."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
from mor_core.errors import Invalid

from mor_trainer.control.database import Database
from mor_trainer.control.history_schema import SCHEMAS
from mor_trainer.control.transaction import Transaction

_TABLES = re.findall(r"CREATE TABLE (\w+)", "".join(SCHEMAS))
_ROWS_AT_ONCE = 500
"""Rows of one statement: a few megabytes at most."""
_ADOPTED = ".adopted"
"""Ending of the name of a file whose history is elsewhere now."""

log = structlog.get_logger(__name__)


def adopt(file: Path, sql: Transaction) -> None:
    """Copy the history of an SQLite file, of this release or an earlier one, within the transaction of ``sql``.

    Rows that the database refuses, such as those of another type, are left out.
    """
    log.info("the history moves into another database", file=str(file))
    Database.of_file(file, "moved").close()  # it has this release's schema then, and a run control on it writes no more
    with contextlib.closing(sqlite3.connect(file)) as source:
        for table in _TABLES:
            copied, refused = 0, 0
            for rows in _batches(source, table):
                copied += len(rows)
                refused += _insert(sql, table, rows)
            log.info("rows of the history copied", table=table, rows=copied - refused, refused=refused)
    if sql.dialect == "postgresql":
        for table in ("events", "samples", "letters", "alerts"):
            sql.value(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}")  # noqa: S608


def set_aside(file: Path) -> None:
    """Rename a file whose history was copied, so that it is neither read nor copied again."""
    for path in (file, *(file.with_name(file.name + ending) for ending in ("-wal", "-shm"))):
        if path.exists():
            path.rename(path.with_name(file.name + _ADOPTED + path.name.removeprefix(file.name)))


def _batches(source: sqlite3.Connection, table: str) -> Iterator[list[dict[str, Any]]]:
    order = "ORDER BY rowid" if table == "runs" else ""  # in which they are claimed
    cursor = source.execute(f"SELECT * FROM {table} {order}")  # noqa: S608
    columns = [column[0] for column in cursor.description]
    while rows := cursor.fetchmany(_ROWS_AT_ONCE):
        yield [dict(zip(columns, row, strict=True)) for row in rows]


def _insert(sql: Transaction, table: str, rows: list[dict[str, Any]]) -> int:
    """Insert rows, and return how many the database refuses."""
    columns = ", ".join(rows[0])
    values = ", ".join(f":{column}" for column in rows[0])
    query = f"INSERT INTO {table} ({columns}) VALUES ({values})"  # noqa: S608
    sql.run("SAVEPOINT rows")
    try:
        sql.run_all(query, rows)
    except sql.refusals:
        sql.run("ROLLBACK TO SAVEPOINT rows")
        return 1 if len(rows) == 1 else sum(_insert(sql, table, [row]) for row in rows)
    sql.run("RELEASE SAVEPOINT rows")
    return 0


def back_up(source: Path, target: Path) -> None:
    """Write a consistent copy of an SQLite file that run control may be using.

    Raises:
        Invalid: there is no such file, or ``target`` exists.
    """
    if not source.is_file():
        raise Invalid(f"there is no history {source}; run this with the settings of run control")
    if target.exists():
        raise Invalid(f"{target} exists; name a new file")
    with (
        contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as live,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        live.backup(copy, pages=1000)
