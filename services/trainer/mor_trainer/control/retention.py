"""Deletion of what ended runs leave: their files, and the parts of the history that nobody reads after months.

Of a run's folder the final model stays for ever, and so do the results of the check of its prompts, which are small. Of
its history the specification, the state, the metrics and the evaluations stay. An active run is never touched: its own
settings bound its checkpoints and versions.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import shutil
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import structlog
from mor_core import atomic
from mor_core.failures import describe_failure
from mor_core.run_storage import Freed
from mor_core.server_clock import SERVER_CLOCK, TOLERATED_SKEW_S
from mor_core.tasks import in_thread

from mor_trainer.config import ControlSettings
from mor_trainer.control.database import Database
from mor_trainer.control.history import History
from mor_trainer.control.run_rows import check_over
from mor_trainer.control.run_store import RunStore
from mor_trainer.run_files import (
    CHECKPOINTS,
    DELETED_MARK,
    FOLDERS,
    REPLAY_LOG,
    FolderSize,
    checkpoints,
    damaged_checkpoints,
    folder_of,
    leftovers,
    measure,
    own_folder,
)

_PAUSE_S = 3600.0
"""Mean seconds between sweeps while no run ends: what they delete is weeks old then."""
_LOOK_S = 10.0
"""Seconds between looks for a run that ended. Its files may be more than the disk can hold beside those of others."""
_FIRST_S = 300.0
"""Seconds before the first sweep: by then the machine's clock is set, which decides what is old."""
_DAY_S = 86400.0

log = structlog.get_logger(__name__)
audit = structlog.get_logger("audit")


@dataclass(frozen=True)
class EndedRun:
    """Files of a run that is over and may be deleted."""

    run: str
    ended_at: float
    """Unix time, seconds."""
    bytes: int


class Retention:
    """Limits of the files and history of ended runs: by age, by number of runs, and by bytes."""

    def __init__(self, settings: ControlSettings, database: Database, runs: RunStore, history: History) -> None:
        self._settings, self._database, self._runs, self._history = settings, database, runs, history

    async def keep_sweeping(self, *, first_s: float = _FIRST_S, pause_s: float = _PAUSE_S) -> None:
        """Delete what is over the limits, again and again, until cancelled."""
        await asyncio.sleep(first_s)
        while True:
            swept = self._runs.ended().keys()
            try:
                await self.sweep()
            except Exception as error:  # a disk or database that fails now may work at the next sweep
                log.warning("the files of ended runs cannot be swept", error=describe_failure(error))
            await self._pause(random.uniform(0.7, 1.3) * pause_s, swept)

    async def _pause(self, seconds: float, swept: Set[str]) -> None:
        """Wait, at most until there is a run that ended and is not among those that were ``swept``."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _LOOK_S))
            if self._runs.ended().keys() - swept:
                return

    async def sweep(self) -> None:
        """Delete what is over the limits now; nothing while this machine's clock may be wrong, by which ages count."""
        now = time.time()
        if abs(now - SERVER_CLOCK.now()) > TOLERATED_SKEW_S:
            log.warning("nothing of ended runs is deleted: this machine and the queue server disagree about the time")
            return
        ended = await in_thread(self._measure, self._runs.ended())
        disk = await in_thread(shutil.disk_usage, self._settings.runs_dir)
        for found in self._surplus(ended, now, disk.total):
            # On the event loop's thread, so that no worker claims the run between the two.
            if found.run in self._runs.ended():
                folder = self._folder(found.run)
                deleted = _set_aside(folder, _surplus_files(folder, 0), mark=True)
                await in_thread(_remove, deleted)
                log.info("files of an ended run deleted", run=found.run, bytes=found.bytes)
        forgotten = self._history.forget_ended(now - self._settings.history_days * _DAY_S)
        if forgotten:
            log.info("events and samples of ended runs deleted", runs=forgotten)

    def _surplus(self, ended: list[EndedRun], now: float, disk_bytes: int) -> Iterator[EndedRun]:
        """Yield the runs whose files are to be deleted: too old, too many, or too large together; newest ones stay."""
        settings, kept, size = self._settings, 0, 0
        share = settings.ended_runs_share * disk_bytes
        for found in sorted(ended, key=lambda one: -one.ended_at):
            kept, size = kept + 1, size + found.bytes
            old = now - found.ended_at > settings.ended_run_days * _DAY_S
            large = size > settings.ended_runs_bytes or (size > share and kept > 1)
            if old or large or kept > settings.ended_runs_kept:
                yield found

    def _folder(self, run: str) -> Path:
        return folder_of(self._settings.runs_dir, run)

    def _measure(self, ended: dict[str, float]) -> list[EndedRun]:
        """Return the ended runs that have files to delete, with their sizes."""
        found = []
        for run, ended_at in ended.items():
            parts = _surplus_files(self._folder(run), 0)
            if parts:
                found.append(EndedRun(run, ended_at, _size(parts).bytes))
        return found

    async def prune(self, run: str, by: str, *, keep_checkpoints: int, dry_run: bool) -> Freed:
        """Delete the files of an ended run now, but its final model and its newest ``keep_checkpoints``.

        Raises:
            NotFound: no such run.
            Conflict: it is not over.
        """
        check_over(self._database, run)
        folder = self._folder(run)
        parts = await in_thread(_surplus_files, folder, keep_checkpoints)
        size = await in_thread(_size, parts)
        freed = Freed(run=run, bytes=size.bytes, files=size.files, dry_run=dry_run)
        if not dry_run and parts:
            check_over(self._database, run)  # on the event loop's thread, as in ``sweep``
            deleted = _set_aside(folder, [path for path in parts if path.exists()], mark=keep_checkpoints == 0)
            audit.info("run pruned", run=run, by=by, kept=keep_checkpoints, bytes=size.bytes, files=size.files)
            await in_thread(_remove, deleted)
        return freed


def _surplus_files(folder: Path, keep_checkpoints: int) -> list[Path]:
    """List what is to be deleted of an ended run of which so many checkpoints stay."""
    if not own_folder(folder):
        return []
    parts = leftovers(folder)  # of a killed worker, or a killed run control
    kept = () if keep_checkpoints == 0 else (CHECKPOINTS, REPLAY_LOG)
    parts += [folder / name for name in FOLDERS if name not in kept and own_folder(folder / name)]
    return parts + (checkpoints(folder)[:-keep_checkpoints] + damaged_checkpoints(folder) if kept else [])


def _size(parts: list[Path]) -> FolderSize:
    return sum(map(measure, parts), FolderSize())


def _set_aside(folder: Path, parts: list[Path], *, mark: bool) -> list[Path]:
    """Rename the parts to delete, so that no reader sees a part of them; with ``mark`` the run cannot continue."""
    if mark:
        (folder / DELETED_MARK).touch()
    hidden = [path for path in parts if path.name.startswith(".")]
    shown = [path for path in parts if not path.name.startswith(".")]
    return hidden + [path.rename(folder / f".{path.name}.{secrets.token_hex(4)}.gone") for path in shown]


def _remove(parts: list[Path]) -> None:
    for path in parts:
        atomic.remove(path)
