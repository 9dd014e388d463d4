"""Progress of training: a progress bar on a terminal, or no output."""

from __future__ import annotations

from typing import Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressReporter(Protocol):
    """Receiver of training progress."""

    def phase(self, name: str, total: int | None) -> None:
        """Begin a phase of ``total`` steps; ``None`` if the number is unknown."""
        ...

    def advance(self, done: int, note: str = "") -> None:
        """Report that ``done`` steps of the phase are finished in all."""
        ...


class NoProgress:
    """Progress reporter without output."""

    def phase(self, name: str, total: int | None) -> None:
        """Show nothing."""

    def advance(self, done: int, note: str = "") -> None:
        """Show nothing."""


class ProgressBar:
    """Rich progress bar with one line for each phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def phase(self, name: str, total: int | None) -> None:
        self._task = self._progress.add_task(name, total=total, note="")

    def advance(self, done: int, note: str = "") -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, note=note)


def progress_columns() -> Progress:
    return Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
