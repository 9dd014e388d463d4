"""Store of dead letters: groups that were given up, with reason and record, and requests to replay them."""

from __future__ import annotations

from typing import Any

from mor_core.errors import Conflict, NotFound
from mor_core.run_status import DeadGroup, DeadGroupRecord
from mor_core.stored import StoredEntries
from mor_core.wire import UNREADABLE, GroupId
from pydantic import TypeAdapter

from mor_trainer.control.database import Database
from mor_trainer.control.transaction import Transaction

_LETTERS = StoredEntries("dead_letters")
_GROUP: TypeAdapter[str] = TypeAdapter(GroupId)
_REPLAYS_AT_ONCE = 100
"""Replays in one heartbeat's answer; the next answer brings further ones."""


class DeadLetterStore:
    """Dead letters of all runs.

    When an operator requests a replay, the training process issues the group again from the prompts file, with its own
    id and seeds.
    """

    def __init__(self, database: Database, kept: int) -> None:
        self._database = database
        self._kept = kept

    def add_in(self, sql: Transaction, run: str, data: dict[str, Any], *, attempt: int, step: int, at: float) -> None:
        """Store the dropped group of an alert of the training process."""
        letter = data.get("letter") or {}
        sql.run(
            "INSERT INTO letters (run, step, attempt, at, group_id, stage, stream, reason, attempts, record) "
            "VALUES (:run, :step, :attempt, :at, :group, :stage, :stream, :reason, :attempts, :record)",
            run=run,
            step=step,
            attempt=attempt,
            at=at,
            group=data["group_id"],
            reason=data["reason"],
            **{name: letter.get(name) for name in ("stage", "stream", "attempts", "record")},
        )
        sql.run(
            "DELETE FROM letters WHERE run=:run AND id <= "
            "(SELECT id FROM letters WHERE run=:run ORDER BY id DESC LIMIT 1 OFFSET :kept)",
            run=run,
            kept=self._kept,
        )

    @staticmethod
    def rewind_in(sql: Transaction, run: str, step: int) -> None:
        """Request the replays after ``step`` again: the run continues from there, so they are lost."""
        sql.run(
            "UPDATE letters SET replay='asked', replay_step=NULL "
            "WHERE run=:run AND replay='issued' AND replay_step>=:step",
            run=run,
            step=step,
        )

    @staticmethod
    def replayed_in(sql: Transaction, run: str, step: int, data: dict[str, Any]) -> None:
        """Record the outcome of a replay, which the training process reports."""
        outcome = "issued" if data["issued"] else "not dropped"
        sql.run(
            "UPDATE letters SET replay=:outcome, replay_step=:step WHERE run=:run AND id=:id",
            outcome=outcome,
            step=step,
            run=run,
            id=data["letter"],
        )

    def list(self, run: str, limit: int) -> list[DeadGroup]:
        """List the dead letters of a run, newest first."""
        rows = self._database.rows(
            "SELECT * FROM letters WHERE run=:run ORDER BY id DESC LIMIT :limit", run=run, limit=limit
        )
        return _LETTERS.parse_list(rows, lambda row: DeadGroup(**{name: row[name] for name in DeadGroup.model_fields}))

    def get(self, run: str, letter: int) -> DeadGroupRecord:
        """Return a dead letter with its record.

        Raises:
            NotFound: the run has no such letter.
            Conflict: it cannot be read.
        """
        row = self._database.row("SELECT * FROM letters WHERE run=:run AND id=:id", run=run, id=letter)
        if row is None:
            raise NotFound(f"run {run} has no dead letter {letter}; 'mor dead list {run}' shows all")
        fields = DeadGroupRecord.model_fields
        found = _LETTERS.parse(letter, row, lambda given: DeadGroupRecord(**{name: given[name] for name in fields}))
        if found is None:
            raise Conflict(f"dead letter {letter} of run {run} cannot be read; the log has the reason")
        return found

    def request_replay(self, run: str, letter: int, by: str) -> DeadGroup:
        """Request that the training process issues the group again.

        Raises:
            NotFound: no such letter.
            Conflict: the letter is no group but a record that could not be read.
        """
        if self.get(run, letter).group_id == UNREADABLE:
            raise Conflict(f"dead letter {letter} is an unreadable record, not a group; see its record for the reason")
        self._database.write(
            "UPDATE letters SET replay='asked', replay_asked_by=:by WHERE run=:run AND id=:id AND replay != 'asked'",
            by=by,
            run=run,
            id=letter,
        )
        return self.get(run, letter)

    def requested_replays(self, run: str) -> dict[int, str]:
        """Return the groups that the training process is to issue again, by the id of their letter."""
        rows = self._database.rows(
            "SELECT id, group_id FROM letters WHERE run=:run AND replay='asked' ORDER BY id LIMIT :most",
            run=run,
            most=_REPLAYS_AT_ONCE,
        )
        found = _LETTERS.parse_list(rows, lambda row: (row["id"], _GROUP.validate_python(row["group_id"], strict=True)))
        return dict(found)
