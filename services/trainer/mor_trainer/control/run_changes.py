"""Changes of the tags and the note of a run."""

from __future__ import annotations

import json

from mor_core.errors import Conflict
from mor_core.run_change import MOST_TAGS, RunChange

from mor_trainer.control import run_rows
from mor_trainer.control.database import Database
from mor_trainer.control.run_store import RunStore


class RunChanges:
    """Writer of the tags and notes of all runs."""

    def __init__(self, database: Database, runs: RunStore) -> None:
        self._database = database
        self._runs = runs

    def apply(self, run: str, change: RunChange) -> None:
        """Change tags and note of a run, and tell its readers by an event.

        Raises:
            NotFound: no such run.
            Conflict: the run would have too many tags.
        """
        run_rows.row_of(self._database, run)
        with self._database.transaction() as sql:
            stored = sql.row("SELECT tags, note FROM runs WHERE id=:id", id=run) or {"tags": None, "note": None}
            known = run_rows.RUN_ROWS.parse(run, stored["tags"], run_rows.read_tags) or ()
            tags = sorted({*known, *change.add_tags} - {*change.remove_tags})
            if len(tags) > MOST_TAGS:
                raise Conflict(f"run {run} would have {len(tags)} tags, and may have {MOST_TAGS}; remove some first")
            note = stored["note"] if change.note is None else change.note or None
            if (tags, note) == (list(known), stored["note"]):
                return
            run_rows.add_event(sql, run, {"tags": tags, "note": note}, kind="change")
            self._runs.touch_in(sql, run, tags=json.dumps(tags), note=note)
