"""Folder through which an attempt writes into its run's folder, so that a superseded attempt writes nothing any more.

Attempt 3 writes each file in ``{run folder}/.attempt-3/`` before it renames it into place, and renames what it deletes
into that folder first. The next attempt removes the folder when it begins. A rename from or into a folder that is gone
fails: the file system itself refuses a superseded attempt, at whatever moment it wakes up.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from mor_core import atomic
from mor_core.fence import superseded

_PREFIX = ".attempt-"
_NAME = re.compile(re.escape(_PREFIX) + r"([0-9]{1,9})")


class AttemptFolder:
    """Folder of one attempt at a run."""

    def __init__(self, run_folder: Path, attempt: int) -> None:
        self._run_folder = run_folder
        self._attempt = attempt
        self.path = run_folder / f"{_PREFIX}{attempt}"

    def claim(self, confirm: Callable[[], bool]) -> None:
        """Create the folder, and remove those of other attempts with what they left half-written.

        ``confirm`` asks run control whether this attempt holds the run. That decides where there is a later one: run
        control may have been restored from a backup, and counts again from there.

        Raises:
            Superseded: a later attempt at the run has begun.
        """
        self.path.mkdir(parents=True, exist_ok=True)  # first, so that of two attempts at once one sees the other
        others = self._others()
        if any(attempt > self._attempt for attempt in others) and not confirm():
            self.release()
            raise superseded(self._run_folder.name, self._attempt)
        for folder in others.values():
            with contextlib.suppress(FileNotFoundError):  # a later attempt was first
                atomic.delete(folder)
        atomic.sweep(self._run_folder, leave=_PREFIX)

    def release(self) -> None:
        """Remove the folder at the end of the attempt; a later attempt may have done so."""
        with contextlib.suppress(OSError):
            atomic.delete(self.path)

    def _others(self) -> dict[int, Path]:
        """Return the folders of other attempts."""
        found = {int(name[1]): path for path in self._run_folder.iterdir() if (name := _NAME.fullmatch(path.name))}
        found.pop(self._attempt, None)
        return found
