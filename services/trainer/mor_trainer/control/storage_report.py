"""Report of what all runs keep on the disk, for the page that shows it."""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import suppress
from pathlib import Path

from mor_core.blobs import is_run_id
from mor_core.disk_full import existing
from mor_core.run_storage import RetentionLimits, RunStorage, StorageReport
from mor_core.runs import RunState
from mor_core.tasks import in_thread

from mor_trainer import run_files
from mor_trainer.config import ControlSettings
from mor_trainer.control.database import Database
from mor_trainer.control.database_address import history_address
from mor_trainer.control.run_deletion import RunDeletion
from mor_trainer.control.transaction import Row
from mor_trainer.run_files import FolderSize

_FRESH_S = 10.0
"""Seconds for which a report is kept: a walk over the files of a hundred runs takes a second on a network's disk."""
_DAY_S = 86400.0


class StorageReporter:
    """Reporter of sizes, which walks over the files once for all readers of the same seconds."""

    def __init__(self, settings: ControlSettings, database: Database, deletion: RunDeletion) -> None:
        self._settings, self._database, self._deletion = settings, database, deletion
        self._walking = asyncio.Lock()
        self._known: dict[str, RunStorage] = {}
        self._known_at = 0.0
        self._history = history_address(settings).file

    async def report(self) -> StorageReport:
        """Return the sizes of all runs, at most ten seconds old."""
        rows = self._database.rows(
            "SELECT id, state, finished_at, archived_at FROM runs WHERE CAST(id AS TEXT)=id"  # SQLite takes anything
        )
        deleting = tuple(self._deletion.pending())
        async with self._walking:
            if time.monotonic() - self._known_at > _FRESH_S:
                self._known = await in_thread(lambda: {row["id"]: self._measure(row) for row in rows})
                self._known_at = time.monotonic()
            elif fresh := [row for row in rows if row["id"] not in self._known]:
                self._known |= await in_thread(lambda: {row["id"]: self._measure(row) for row in fresh})
            runs = [self._known[row["id"]].model_copy(update=self._columns(row)) for row in rows]
        disk = await in_thread(shutil.disk_usage, existing(self._settings.runs_dir))
        return StorageReport(
            disk_bytes=disk.total,
            free_bytes=disk.free,
            history_bytes=None if self._history is None else _history_bytes(self._history),
            limits=RetentionLimits(**{name: getattr(self._settings, name) for name in RetentionLimits.model_fields}),
            runs=tuple(sorted(runs, key=lambda run: -run.bytes)),
            deleting=deleting,
        )

    def forget(self) -> None:
        """Have the next report measure anew: something was deleted."""
        self._known_at = 0.0

    def _measure(self, row: Row) -> RunStorage:
        parts: dict[str, FolderSize] = {}
        if is_run_id(row["id"]) and run_files.own_folder(
            folder := run_files.folder_of(self._settings.runs_dir, row["id"])
        ):
            with suppress(FileNotFoundError):  # it is deleted at this moment
                parts = {path.name: run_files.measure(path) for path in folder.iterdir()}
        named = {name: parts.pop(name, FolderSize()) for name in (*run_files.FOLDERS, run_files.FINAL)}
        other = sum(parts.values(), FolderSize())
        surplus = any(size.files for name, size in named.items() if name != run_files.FINAL)
        finished_at = row["finished_at"] if isinstance(row["finished_at"], float) else None
        expires = finished_at is not None and surplus
        return RunStorage(
            run=row["id"],
            state=None,
            archived=False,
            finished_at=finished_at,
            checkpoints=named[run_files.CHECKPOINTS].bytes,
            weights=named[run_files.WEIGHTS].bytes,
            replay_log=named[run_files.REPLAY_LOG].bytes,
            exports=named[run_files.EXPORTS].bytes,
            final=named[run_files.FINAL].bytes,
            other=other.bytes,
            files=other.files + sum(size.files for size in named.values()),
            expires_at=finished_at + self._settings.ended_run_days * _DAY_S if finished_at and expires else None,
        )

    @staticmethod
    def _columns(row: Row) -> dict[str, object]:
        """Return what a row says now, which changes without the files."""
        state = RunState(row["state"]) if row["state"] in set(RunState) else None
        return {"state": state, "archived": row["archived_at"] is not None}


def _history_bytes(file: Path) -> int:
    """Return the size of an SQLite file with what was written ahead of it."""
    total = 0
    for path in (file, file.with_name(f"{file.name}-wal")):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
