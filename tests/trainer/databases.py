"""Databases of run control for tests that must hold on SQLite and on PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from mor_trainer.control.database import Database
from mor_trainer.control.database_address import Address

from tests.postgresql import PostgreSQL, programs


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    binaries = programs()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    server = PostgreSQL(binaries)
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/own/history.sqlite3"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database(f"mor-{uuid.uuid4().hex[:8]}")


def open_database(url: str, holder: str = "first") -> Database:
    """Open a database and take it over, as the next run control does."""
    database = Database(Address.parse(url))
    owner = database.owner()
    assert database.take_over(holder, 0 if owner is None else owner.epoch, leased=True)
    return database
