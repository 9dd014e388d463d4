"""Deletion of runs: the row first, in exchange for a note; then files, queue keys, blobs and history; the note last.

From the moment at which the row is gone there is no such run for anybody. What is left is deleted in the background,
and by the next run control where this one is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial

import structlog
from mor_core import atomic
from mor_core.blob_sweep import delete_run
from mor_core.blobs import is_run_id
from mor_core.failures import describe_failure
from mor_core.run_keys import delete_run_keys
from mor_core.run_storage import Freed
from mor_core.tasks import in_thread
from redis.asyncio import Redis

from mor_trainer import metrics, run_files
from mor_trainer.config import ControlSettings
from mor_trainer.control.database import Database
from mor_trainer.control.run_rows import check_over
from mor_trainer.control.run_store import RunStore
from mor_trainer.run_files import FolderSize

_TABLES = {
    "attempts": "attempt",
    "events": "id",
    "metrics": "step",
    "evaluations": "step",
    "samples": "id",
    "thumbnails": "sha256",
    "letters": "id",
    "alerts": "id",
}
"""Table with rows of runs -> column that tells the rows of a run apart."""
_ROWS_AT_ONCE = 2000
"""Rows of one statement: some milliseconds, in which no other request waits long."""
_AGAIN_S = 60.0
"""Seconds until what could not be deleted is tried again."""

log = structlog.get_logger(__name__)
audit = structlog.get_logger("audit")


class RunDeletion:
    """Deletion of runs that are over."""

    def __init__(self, settings: ControlSettings, database: Database, runs: RunStore) -> None:
        self._settings, self._database, self._runs = settings, database, runs
        self._wanted = asyncio.Event()

    async def delete(self, run: str, by: str, *, dry_run: bool = False) -> Freed:
        """Delete a run for good, and return what its files take. A repeated request returns the same until all is gone.

        Raises:
            NotFound: no such run.
            Conflict: it is not over.
        """
        pending = self._database.row("SELECT * FROM deletions WHERE run=:run", run=run)
        if pending is not None:
            return Freed(run=run, bytes=pending["bytes"], files=pending["files"])
        check_over(self._database, run)
        size = await in_thread(self._measure, run)
        freed = Freed(run=run, bytes=size.bytes, files=size.files, dry_run=dry_run)
        if dry_run:
            return freed
        check_over(
            self._database, run
        )  # somebody may have resumed it meanwhile; no other request comes between this and the row
        with self._database.transaction() as sql:
            sql.run("DELETE FROM runs WHERE id=:run", run=run)
            sql.run(
                "INSERT INTO deletions (run, at, bytes, files) VALUES (:run, :at, :bytes, :files)",
                run=run,
                at=time.time(),
                bytes=size.bytes,
                files=size.files,
            )
        self._runs.forget(run)
        audit.info("run deleted", run=run, by=by, bytes=size.bytes, files=size.files)
        self._wanted.set()
        return freed

    def pending(self) -> list[str]:
        """List the runs that are deleted and of which something is left."""
        return [row["run"] for row in self._database.rows("SELECT run FROM deletions ORDER BY at")]

    async def keep_finishing(self, redis: Redis) -> None:
        """Delete what is left of deleted runs, again and again, until cancelled."""
        while True:
            self._wanted.clear()
            try:
                await self.finish(redis)
            except Exception as error:  # a database that is away now may be there in a minute
                log.warning("deleted runs cannot be looked up", error=describe_failure(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_S):
                    await self._wanted.wait()

    async def finish(self, redis: Redis) -> None:
        """Delete what is left of deleted runs. What fails for one of them is tried again later."""
        for run in self.pending():
            try:
                await self._finish(run, redis)
            except Exception as error:  # a disk, a queue server or a database that is away now may be there later
                log.warning("a part of a deleted run is left", run=run, again_s=_AGAIN_S, error=describe_failure(error))

    async def _finish(self, run: str, redis: Redis) -> None:
        if is_run_id(run):  # a name that is none names no folder and no key
            await in_thread(self._remove_files, run)
            await delete_run_keys(redis, run)
            if self._settings.blob_dir is not None:
                await in_thread(delete_run, self._settings.blob_dir, run)
        for table, column in _TABLES.items():
            query = (
                f"DELETE FROM {table} WHERE run=:run AND {column} IN "  # noqa: S608
                f"(SELECT {column} FROM {table} WHERE run=:run LIMIT {_ROWS_AT_ONCE})"
            )
            while await in_thread(partial(self._database.write, query, run=run)):
                pass
        metrics.forget(run)
        self._database.write("DELETE FROM deletions WHERE run=:run", run=run)
        log.info("nothing of a deleted run is left", run=run)

    def _remove_files(self, run: str) -> None:
        """Remove the folder of a run, of which no reader ever sees a part; a link is removed, and not what it names.

        Raises:
            OSError: a file cannot be removed.
        """
        folder = run_files.folder_of(self._settings.runs_dir, run)
        aside = folder.with_name(f".{run}.gone")
        for _ in range(2):  # an earlier attempt may have been killed between the two
            atomic.remove(aside)
            if folder.exists() or folder.is_symlink():
                folder.rename(aside)
        if aside.exists() or aside.is_symlink():
            raise OSError(f"files in {aside} cannot be removed; check their owner and the disk")

    def _measure(self, run: str) -> FolderSize:
        if not is_run_id(run):
            return FolderSize()
        folder = run_files.folder_of(self._settings.runs_dir, run)
        return run_files.measure(folder) if run_files.own_folder(folder) else FolderSize()
