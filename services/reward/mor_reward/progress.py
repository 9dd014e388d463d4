"""Progress of training: a progress bar on a terminal, lines in a file or a pipe, or no output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_S = 30.0
"""Seconds between lines: a training of an hour writes about a hundred."""


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


class ProgressLines:
    """Progress reporter that writes a line at the begin of a phase, at its end, and every 30 seconds between."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._name = ""
        self._total: int | None = None
        self._began = self._written = time.monotonic()

    def phase(self, name: str, total: int | None) -> None:
        self._name, self._total = name, total
        self._began = self._written = time.monotonic()
        self._write(name if total is None else f"{name}: {total} steps")

    def advance(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self._written < _LINE_S and done != self._total:
            return
        self._written = now
        of = "" if self._total is None else f" of {self._total}"
        self._write("  ".join([f"{self._name}: {done}{of}", f"{now - self._began:.0f} s", *([note] if note else [])]))


@contextmanager
def shown_progress(console: Console) -> Iterator[ProgressReporter]:
    """Yield a reporter that shows progress on ``console``."""
    if not console.is_terminal:
        yield ProgressLines(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))
        return
    with Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    ) as progress:
        yield ProgressBar(progress)
