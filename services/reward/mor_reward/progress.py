"""What training tells while it runs: a progress bar on a terminal, nothing for a caller who wants silence."""

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


class Reporter(Protocol):
    def phase(self, name: str, total: int | None) -> None:
        """A new stretch of work of ``total`` parts, if that is known."""
        ...

    def advance(self, done: int, note: str = "") -> None:
        """``done`` parts of the phase are finished in all."""
        ...


class Silent:
    def phase(self, name: str, total: int | None) -> None:
        """Nothing is shown."""

    def advance(self, done: int, note: str = "") -> None:
        """Nothing is shown."""


class Bar:
    """A rich progress bar with one line for each phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def phase(self, name: str, total: int | None) -> None:
        self._task = self._progress.add_task(name, total=total, note="")

    def advance(self, done: int, note: str = "") -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, note=note)


def bar_columns() -> Progress:
    return Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
