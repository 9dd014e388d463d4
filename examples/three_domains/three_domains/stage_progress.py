"""Progress of the commands: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import Progress

_LINE_S = 5.0
"""Seconds between lines: a command takes a few minutes, and what follows its log shows the time left."""

Item = TypeVar("Item")


class StageProgress:
    """Progress of one stage of a command, shown as it advances."""

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self._progress = progress
        self._title = title
        self._total = total
        self._done = 0
        self._task = progress.add_task(title, total=total)
        self._said = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done. ``note``: figures to show with the title."""
        self._done += steps
        title = f"{self._title}, {note}" if note else self._title
        self._progress.update(self._task, completed=self._done, description=title)
        now = time.monotonic()
        if not self._progress.console.is_terminal and (now - self._said >= _LINE_S or self._done == self._total):
            self._said = now
            self._progress.console.print(f"{title}: {self._done} of {self._total}", highlight=False, soft_wrap=True)


def advancing(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Yield items and show how many are done."""
    with Progress() as progress:
        stage = StageProgress(progress, title, total)
        for item in items:
            yield item
            stage.advance()
