"""Archive of runs that are over: they leave the lists, keep their files and history, and can come back."""

from __future__ import annotations

import time

import structlog

from mor_trainer.control.database import Database
from mor_trainer.control.run_rows import add_event, check_over
from mor_trainer.control.run_store import RunStore

audit = structlog.get_logger("audit")


class RunArchive:
    """Runs that the lists leave out."""

    def __init__(self, database: Database, runs: RunStore) -> None:
        self._database, self._runs = database, runs

    def put(self, run: str, by: str) -> None:
        """Leave a run out of the lists. It comes back when it is resumed.

        Raises:
            NotFound: no such run.
            Conflict: it is not over.
        """
        check_over(self._database, run)
        self._set(run, time.time())
        audit.info("run archived", run=run, by=by)

    def take_out(self, run: str, by: str) -> None:
        """Bring a run back into the lists.

        Raises:
            NotFound: no such run.
        """
        self._runs.revision(run)
        self._set(run, None)
        audit.info("run taken out of the archive", run=run, by=by)

    def _set(self, run: str, archived_at: float | None) -> None:
        with self._database.transaction() as sql:
            self._runs.touch_in(sql, run, archived_at=archived_at)
            add_event(sql, run, {"archived": archived_at is not None})
