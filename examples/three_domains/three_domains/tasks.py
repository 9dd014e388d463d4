"""Tasks of the demonstration, each begun as soon as what it needs is done and the cores have room for it."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from mor_core.printable import visible_lines

from three_domains import prepare
from three_domains.prepare import PreparationStep

_POLL_S = 0.2
"""Seconds between checks for finished tasks, which take seconds to minutes."""
_TAIL_BYTES = 4096
"""End of a log that is searched for the last line of progress."""
_PROGRESS = re.compile(r"^([a-z ]+)[:,].*?(\d+) of (\d+)", re.MULTILINE)
"""Line of progress: the name of a stage, and how many of its steps are done."""

Report = Callable[[float, str], None]
"""Receiver of the done fraction of a call, and of a note on it."""


class Task(ABC):
    """Task with a title, its work relative to the others', the titles that it needs, and the cores that it keeps busy.

    A task of 0 cores mostly waits, and always has room.
    """

    def __init__(self, title: str, work: float, needs: Sequence[str], cores: int) -> None:
        self.title = title
        self.work = work
        self.needs = needs
        self.cores = cores
        self.note = ""
        """Figures to show beside the progress."""

    @property
    def exists(self) -> bool:
        """True where an earlier demonstration did the task."""
        return False

    @property
    @abstractmethod
    def fraction(self) -> float | None:
        """Fraction that is done; ``None`` if it is unknown."""

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def finished(self) -> bool:
        """Return whether the task is done.

        Raises:
            Exception: the failure of the task.
        """


class Command(Task):
    """Command that makes a folder, with its output in its log."""

    def __init__(self, step: PreparationStep, done: Callable[[PreparationStep], None] = lambda step: None) -> None:
        """``done`` is called once the folder exists."""
        super().__init__(step.title, step.work, step.needs, step.cores)
        self.step = step
        self.process: subprocess.Popen[bytes] | None = None
        self._done = done

    @property
    def exists(self) -> bool:
        return self.step.makes.exists()

    @property
    def fraction(self) -> float | None:
        with self.step.log.open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - _TAIL_BYTES))
            lines = _PROGRESS.findall(log.read().decode(errors="replace"))
        before = 0.0
        for name, part in self.step.stages:
            if lines and lines[-1][0] == name:
                return before + part * min(1.0, int(lines[-1][1]) / max(1, int(lines[-1][2])))
            before += part
        return None

    def begin(self) -> None:
        self.step.makes.parent.mkdir(parents=True, exist_ok=True)
        with self.step.log.open("wb") as log:
            self.process = subprocess.Popen(self.step.command, process_group=0, stdout=log, stderr=log)

    def finished(self) -> bool:
        assert self.process is not None
        if self.process.poll() is None:
            return False
        if self.process.returncode:
            print(visible_lines(self.step.log.read_text(errors="replace")))
            raise self.step.failure(self.process.returncode)
        self._done(self.step)
        return True


class Call(Task):
    """Calls to the services, on a thread. They fail, and the thread ends, when the services end."""

    def __init__(
        self,
        title: str,
        function: Callable[[Report], object],
        *,
        work: float,
        needs: Sequence[str] = (),
        cores: int = 0,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """``done`` is called where the tasks are run, once the calls have ended: nothing is printed after a failure."""
        super().__init__(title, work, needs, cores)
        self._function = function
        self._done = done
        self._fraction: float | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=title, daemon=True)

    @property
    def fraction(self) -> float | None:
        return self._fraction

    def begin(self) -> None:
        self._thread.start()

    def finished(self) -> bool:
        if self._thread.is_alive():
            return False
        if self._failure is not None:
            raise self._failure
        self._done()
        return True

    def _run(self) -> None:
        try:
            self._function(self._report)
        except BaseException as error:  # raised where the tasks are run
            self._failure = error

    def _report(self, fraction: float, note: str = "") -> None:
        self._fraction, self.note = fraction, note


class Observer(Protocol):
    """Receiver of the tasks' progress."""

    def begun(self, task: Task) -> None: ...

    def ended(self, task: Task) -> None: ...

    def look(self) -> None:
        """Show how far the running tasks are."""


def run_tasks(tasks: Sequence[Task], cores: int, observer: Observer, check: Callable[[], None] = lambda: None) -> None:
    """Run tasks, the first ones first, on ``cores`` cores; skip those that exist. ``check`` is called all the while.

    Raises:
        StepFailed: a command failed; its log has been printed, and the other commands were interrupted.
        Exception: the failure of a call, or of ``check``.
    """
    done = {task.title for task in tasks if task.exists}
    waiting = [task for task in tasks if not task.exists]
    running: list[Task] = []
    try:
        while waiting or running:
            for task in _startable(waiting, done, cores - sum(min(task.cores, cores) for task in running), cores):
                waiting.remove(task)
                running.append(task)  # first: an interrupt must find what has begun
                task.begin()
                observer.begun(task)
            time.sleep(_POLL_S)
            check()
            for task in [task for task in running if task.finished()]:
                running.remove(task)
                done.add(task.title)
                observer.ended(task)
            observer.look()
    finally:
        processes = [task.process for task in running if isinstance(task, Command) and task.process is not None]
        prepare.end(processes)


def _startable(waiting: Sequence[Task], done: set[str], free: int, cores: int) -> list[Task]:
    """Choose the tasks that can begin. One that waits for cores keeps later ones from taking them."""
    found = []
    for task in waiting:
        wanted = min(task.cores, cores)
        if not done.issuperset(task.needs):
            continue
        if wanted > free:
            free = 0
            continue
        free -= wanted
        found.append(task)
    return found
