"""Deletion of what ended runs leave: their files, and the parts of the history that nobody reads after months.

Of a run's folder the final model stays for ever, and so do the results of the check of its prompts, which are small. Of
its history the specification, the state, the metrics and the evaluations stay. An active run is never touched: its own
settings bound its checkpoints and versions.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from mor_core import atomic
from mor_core.disk_full import folder_bytes
from mor_core.failures import describe_failure
from mor_core.server_clock import SERVER_CLOCK, TOLERATED_SKEW_S
from mor_core.tasks import in_thread

from mor_trainer.config import ControlSettings
from mor_trainer.control.history import History
from mor_trainer.control.run_store import RunStore

FOLDERS = ("checkpoints", "weights", "record")
"""Folders of a run that are deleted after its end."""
_MARK = "files-deleted"
"""File in the folder of a run whose checkpoints were deleted: it cannot continue."""
_PAUSE_S = 3600.0
"""Mean seconds between sweeps while no run ends: what they delete is weeks old then."""
_LOOK_S = 10.0
"""Seconds between looks for a run that ended. Its files may be more than the disk can hold beside those of others."""
_FIRST_S = 300.0
"""Seconds before the first sweep: by then the machine's clock is set, which decides what is old."""
_DAY_S = 86400.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class EndedRun:
    """Files of a run that is over and may be deleted."""

    run: str
    ended_at: float
    """Unix time, seconds."""
    bytes: int


def files_are_deleted(run_folder: Path) -> bool:
    """Return whether the checkpoints of a run were deleted some time after its end."""
    return (run_folder / _MARK).exists()


class Retention:
    """Limits of the files and history of ended runs: by age, by number of runs, and by bytes."""

    def __init__(self, settings: ControlSettings, runs: RunStore, history: History) -> None:
        self._settings, self._runs, self._history = settings, runs, history

    async def keep_sweeping(self, *, first_s: float = _FIRST_S, pause_s: float = _PAUSE_S) -> None:
        """Delete what is over the limits, again and again, until cancelled."""
        await asyncio.sleep(first_s)
        while True:
            try:
                await self.sweep()
            except Exception as error:  # a disk or database that fails now may work at the next sweep
                log.warning("the files of ended runs cannot be swept", error=describe_failure(error))
            await self._pause(random.uniform(0.7, 1.3) * pause_s)

    async def _pause(self, seconds: float) -> None:
        """Wait, at most until a run ends."""
        until, before = time.monotonic() + seconds, self._runs.ended()
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _LOOK_S))
            if self._runs.ended().keys() - before:
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
            if self._runs.is_over(found.run):
                deleted = self._set_aside(found.run)
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
        return self._settings.runs_dir / run

    def _measure(self, ended: dict[str, float]) -> list[EndedRun]:
        """Return the ended runs that have files to delete, with their sizes."""
        found = []
        for run, ended_at in ended.items():
            folder = self._folder(run)
            if folder.is_symlink() or not folder.is_dir():
                continue
            parts = [folder / name for name in FOLDERS if (folder / name).is_dir() and not (folder / name).is_symlink()]
            if parts:
                found.append(EndedRun(run, ended_at, sum(map(folder_bytes, parts))))
        return found

    def _set_aside(self, run: str) -> list[Path]:
        """Rename the folders to delete, so that no reader sees a part of them, and mark the run."""
        folder = self._folder(run)
        (folder / _MARK).touch()
        aside = [path for suffix in atomic.LEFTOVERS for path in folder.glob(f".*{suffix}")]  # of a killed worker
        for name in FOLDERS:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                aside.append(path.rename(path.with_name(f".{name}.gone")))
        return aside


def _remove(folders: list[Path]) -> None:
    for path in folders:
        atomic.remove(path)
