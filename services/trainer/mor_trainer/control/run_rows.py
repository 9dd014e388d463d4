"""Rows of the runs in the history: what each says of its run, and the error for one that cannot be read."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from mor_core.errors import Conflict, NotFound
from mor_core.runs import Desired, RunSpec, RunState
from mor_core.stored import StoredEntries
from mor_core.wire import Count
from pydantic import BaseModel, Field, TypeAdapter

from mor_trainer.control.database import Database
from mor_trainer.control.transaction import Row, Transaction

RUN_ROWS = StoredEntries("run_rows")
_TAGS: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[str, ...])
_NOT_OVER = {state.value for state in RunState if not state.over}


class RunRow(BaseModel):
    """Columns of a run's row that decide what happens to the run."""

    spec: RunSpec
    state: RunState
    desired: Desired
    attempt: Annotated[Count, Field(lt=10**9)]
    """An event's id has nine digits of it at most."""
    worker: str | None
    final: str | None


def parse_row(row: Row) -> RunRow | None:
    """Return what a run's row says; ``None`` where it cannot be read."""

    def parse(given: Row) -> RunRow:
        columns = {name: given[name] for name in RunRow.model_fields if name != "spec"}
        return RunRow(spec=RunSpec.model_validate_json(given["spec"], extra="ignore"), **columns)

    return RUN_ROWS.parse(row["id"], row, parse)


def read_tags(stored: str) -> tuple[str, ...]:
    """Return the tags in a run's row."""
    return _TAGS.validate_json(stored)


def unreadable(run: str) -> Conflict:
    """Return the error for a run whose row does not fit."""
    return Conflict(
        f"the stored specification or state of run {run} cannot be read (the log has the reason); create the run again"
    )


def row_of(database: Database, run: str) -> Row:
    """Return the row of a run.

    Raises:
        NotFound: no such run.
    """
    row = database.row("SELECT * FROM runs WHERE id=:id", id=run)
    if row is None:
        raise NotFound(f"no run {run!r}; GET /v1/runs lists them")
    return row


def readable_row(database: Database, run: str) -> RunRow:
    """Return what the row of a run says.

    Raises:
        NotFound: no such run.
        Conflict: it cannot be read.
    """
    found = parse_row(row_of(database, run))
    if found is None:
        raise unreadable(run)
    return found


def check_over(database: Database, run: str) -> Row:
    """Return the row of a run that is over, whether or not the rest of it can be read.

    Raises:
        NotFound: no such run.
        Conflict: a worker holds the run, or may claim it.
    """
    row = row_of(database, run)
    if row["worker"] is not None or row["state"] in _NOT_OVER:
        raise Conflict(
            f"run {run} is {row['state']}; only a run that is finished, failed or stopped can be deleted, pruned, "
            f"archived or exported. Stop it first: mor run stop {run}"
        )
    return row


def created_run(database: Database, creation: str, spec: RunSpec) -> str | None:
    """Return the run of an earlier request with the digest ``creation``, or ``None``.

    Raises:
        Conflict: that request had another specification.
    """
    for row in database.rows("SELECT * FROM runs WHERE creation=:creation", creation=creation):
        found = parse_row(row)
        if found is None or found.spec != spec:
            raise Conflict(
                f"the Idempotency-Key was used for run {row['id']}, which has another specification; send a new key"
            )
        return str(row["id"])
    return None


def add_event(sql: Transaction, run: str, data: dict[str, Any], kind: str = "state") -> None:
    """Store an event of run control's own, which has no attempt, at the run's present step."""
    sql.run(
        "INSERT INTO events (run, attempt, kind, step, at, data) "
        "SELECT id, 0, :kind, step, :at, :data FROM runs WHERE id=:id",
        kind=kind,
        at=time.time(),
        data=json.dumps(data),
        id=run,
    )
