"""Time left of the demonstration's tasks, as this machine has done them so far, and its display."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from mor_core.terminal import TerminalConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from three_domains.tasks import Task

_LINE_S = 30.0
"""Seconds between lines of progress in a file or a pipe."""
_LOOK_S = 1.0
"""Seconds between looks at the progress of tasks, which reads their logs."""
_MOST_ASSUMED = 0.95
"""Largest fraction assumed to be done of a task that does not report it."""


class TimeLeft:
    """Estimate from the work that is done here and the time that it took; unknown until some is done.

    Work is relative, so that nothing depends on the machine on which it was once measured.
    """

    def __init__(self, tasks: Sequence[Task], cores: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._tasks = [task for task in tasks if not task.exists]
        self._cores = cores
        self._clock = clock
        self._start = clock()
        self._began: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        """Durations of the finished tasks, by title."""
        self._reported: dict[str, tuple[float, float]] = {}
        """Fraction and time of the last report of each running task."""
        self._rate: float | None = None
        """Work done per second until the last report."""

    def begun(self, task: Task) -> None:
        self._began[task.title] = self._clock()

    def ended(self, task: Task) -> None:
        self.seconds[task.title] = self._clock() - self._began[task.title]
        self._measure()

    def look(self) -> None:
        """Read the fractions of the running tasks."""
        for task in self.running:
            fraction = task.fraction
            if fraction and fraction != self._reported.get(task.title, (0.0, 0.0))[0]:
                self._reported[task.title] = fraction, self._clock()
                self._measure()

    @property
    def running(self) -> list[Task]:
        return [task for task in self._tasks if task.title in self._began and task.title not in self.seconds]

    def of_all(self) -> float | None:
        """Estimate the seconds until all tasks are done, which no running one outlasts."""
        if self._rate is None:
            return None
        done = sum(task.work * self.fraction(task) for task in self.running)
        rest = (sum(task.work for task in self._tasks) - self._ended_work() - done) / self._rate
        return max(rest, *(self.of(task) or 0.0 for task in self.running), 0.0)

    def of(self, task: Task) -> float | None:
        """Estimate the seconds until a running task is done."""
        expected = self._expected(task)
        return None if expected is None else max(0.0, self._began[task.title] + expected - self._clock())

    def fraction(self, task: Task) -> float:
        """Return the fraction of a running task that is done, or that is likely to be."""
        expected = self._expected(task)
        if not expected:
            return 0.0
        return min(_MOST_ASSUMED, (self._clock() - self._began[task.title]) / expected)

    def _expected(self, task: Task) -> float | None:
        """Estimate a running task's duration: by its own progress, or by the work of all so far."""
        if (reported := self._reported.get(task.title)) is not None:
            return (reported[1] - self._began[task.title]) / reported[0]
        if self._rate is None:
            return None
        return task.work * self._cores / self._rate / max(1, min(task.cores, self._cores))

    def _measure(self) -> None:
        reported = (task.work * self._reported.get(task.title, (0.0, 0.0))[0] for task in self.running)
        done, seconds = self._ended_work() + sum(reported), self._clock() - self._start
        if done and seconds:
            self._rate = done / seconds

    def _ended_work(self) -> float:
        return sum(task.work for task in self._tasks if task.title in self.seconds)


class TimeLeftDisplay:
    """Display of the tasks' progress: bars on a terminal, lines in a file or a pipe."""

    def __init__(self, console: TerminalConsole, estimate: TimeLeft, end: str) -> None:
        """``end``: name of the end of all tasks."""
        self._console = console
        self._estimate = estimate
        self._end = end
        text, left = (TextColumn(form, markup=False) for form in ("  {task.description}", "{task.fields[left]}"))
        columns = (text, BarColumn(), left)
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._shown: dict[str, TaskID] = {}
        self._all = self._bars.add_task(f"until {end}", total=None, left="")
        self._looked = self._said = time.monotonic()

    def __enter__(self) -> TimeLeftDisplay:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begun(self, task: Task) -> None:
        self._estimate.begun(task)
        self._shown[task.title] = self._bars.add_task(task.title, total=1.0, left="")
        if not self._console.is_terminal:
            self._print(f"{task.title}: begins{self._about(task)}")

    def ended(self, task: Task) -> None:
        self._estimate.ended(task)
        self._bars.remove_task(self._shown.pop(task.title))
        self._print(f"{task.title}: {self._estimate.seconds[task.title]:.0f} s")

    def look(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        self._estimate.look()
        for task in self._estimate.running:
            left = " ".join(part for part in (_shown(self._estimate.of(task)), task.note) if part)
            self._bars.update(self._shown[task.title], completed=self._estimate.fraction(task), left=left)
        self._bars.update(self._all, left=_shown(self._estimate.of_all()))
        if not self._console.is_terminal and now - self._said >= _LINE_S:
            self._said = now
            parts = [f"{task.title}{self._about(task)}" for task in self._estimate.running]
            self._print("; ".join([*parts, f"until {self._end}: {_shown(self._estimate.of_all()) or 'unknown'}"]))

    def _about(self, task: Task) -> str:
        left = _shown(self._estimate.of(task))
        return "".join(f", {part}" for part in (left, task.note) if part)

    def _print(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False, soft_wrap=True)


def _shown(seconds: float | None) -> str:
    """Format an estimate, to ten seconds; nothing where it is unknown."""
    if seconds is None:
        return ""
    tens = max(10, round(seconds / 10) * 10)
    return f"about {tens} s left" if tens < 120 else f"about {round(tens / 60)} min left"
