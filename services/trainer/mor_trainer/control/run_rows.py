"""Rows of the runs in the history: what each says of its run, and the error for one that cannot be read."""

from __future__ import annotations

from typing import Annotated

from mor_core.errors import Conflict
from mor_core.runs import Desired, RunSpec, RunState
from mor_core.stored import StoredEntries
from mor_core.wire import Count
from pydantic import BaseModel, Field

from mor_trainer.control.transaction import Row

RUN_ROWS = StoredEntries("run_rows")


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


def unreadable(run: str) -> Conflict:
    """Return the error for a run whose row does not fit."""
    return Conflict(
        f"the stored specification or state of run {run} cannot be read (the log has the reason); create the run again"
    )
