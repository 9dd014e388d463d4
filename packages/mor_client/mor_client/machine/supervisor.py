"""Supervisor of the processes of one machine: it starts them, starts those again that end, and ends all in order."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from mor_core import process
from mor_core.errors import MorError
from mor_core.printable import visible

from mor_client.machine.machine_file import LogFiles
from mor_client.machine.machine_folder import MachineFolder
from mor_client.machine.programs import Program
from mor_client.machine.rotated_log import RotatedLog
from mor_client.machine.supervised_process import SupervisedProcess

_FAILED_STARTS = 4
"""Ends in a row of a process that never worked, after which all others end: nothing will mend by itself."""
_WRONG_SETTING = 2
"""Exit status of a service whose settings are wrong."""
_POLL_S = 0.1
_REMINDER_S = 30.0
"""Seconds after which the processes that are not ready are named again."""


class ProgramFailed(MorError):
    """A process cannot start; the message has its last lines."""


class Supervisor:
    """Processes of ``programs``; ``say`` gets a line for each change."""

    def __init__(
        self, programs: Sequence[Program], folder: MachineFolder, logs: LogFiles, say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._programs = programs
        self._folder = folder
        self._logs = logs
        self._processes: list[SupervisedProcess] = []
        self._ending: signal.Signals | None = None
        self._hurried = False

    def run(self, ready: Callable[[], None]) -> signal.Signals:
        """Run all processes until SIGTERM, SIGINT or SIGHUP, and return it; call ``ready`` once, when all can work.

        Raises:
            Invalid: a port is taken.
            ProgramFailed: a process cannot start; the others have ended.
        """
        for program in self._programs:
            if program.port is not None:
                process.listen("127.0.0.1", program.port, program.name).close()
        with self._signals():
            try:
                self._start()
                self._supervise(ready)
                self._say("ending all services; a training process finishes its step first (once more: at once)")
            finally:
                self._end()
        assert self._ending is not None
        return self._ending

    def _start(self) -> None:
        for program in self._programs:
            log = RotatedLog(self._folder.logs / f"{program.name}.log", self._logs.bytes, self._logs.kept)
            started = SupervisedProcess(program, log)
            self._processes.append(started)
            started.start()
            if program.port is not None and not program.http:  # the queue server, for which all others would wait
                while self._ending is None and not started.became_ready():
                    self._look_at(started)
                    time.sleep(_POLL_S)
                self._say(_began(program))

    def _supervise(self, ready: Callable[[], None]) -> None:
        told, remind_at = False, time.monotonic() + _REMINDER_S
        while self._ending is None:
            for one in self._processes:
                self._look_at(one)
                if one.became_ready():
                    self._say(_began(one.program))
            missing = [one.program.name for one in self._processes if not one.ready]
            if not missing and not told:
                told = True
                ready()
            if not missing:
                remind_at = time.monotonic() + _REMINDER_S
            elif time.monotonic() >= remind_at:
                remind_at = time.monotonic() + _REMINDER_S
                self._say(f"not ready yet: {', '.join(missing)}; logs: {self._folder.logs}")
            time.sleep(_POLL_S)

    def _look_at(self, one: SupervisedProcess) -> None:
        """Start a process again where it has ended.

        Raises:
            ProgramFailed: that would not help.
        """
        if one.ended():
            never = not one.worked and (one.status == _WRONG_SETTING or one.failed_starts >= _FAILED_STARTS)
            lines = [visible(line) for line in one.log.last_lines()]
            if never:
                quoted = "\n".join(f"  {line}" for line in lines)
                raise ProgramFailed(f"{one.program.name} {one.how_it_ended()}; the end of {one.log.file}:\n{quoted}")
            # A service ends with its reason as the last line; a line of JSON is of its log.
            stated = lines and not lines[-1].startswith("{") and (one.status or 0) > 0
            reason = f" ({lines[-1]})" if stated else ""
            self._say(f"{one.program.name} {one.how_it_ended()}{reason}; it starts again in {one.pause_s:.0f} s")
        elif one.restart_at is not None and time.monotonic() >= one.restart_at:
            one.start()

    def _end(self) -> None:
        """End the processes, the last that was started first: a worker hands its run back to services that respond."""
        for one in reversed(self._processes):
            if one.alive:
                one.terminate()
                deadline = time.monotonic() + one.program.stop_s
                while one.alive and time.monotonic() < deadline and not self._hurried:
                    time.sleep(_POLL_S)
                if one.alive:
                    with suppress(OSError):  # the terminal is closed
                        self._say(f"{one.program.name} is killed")
            one.kill()
            one.log.close()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Note the first SIGTERM, SIGINT or SIGHUP; a second one kills what is left."""

        def end(number: int, _: FrameType | None) -> None:
            if self._ending is not None:
                self._hurried = True
                return
            self._ending = signal.Signals(number)  # nothing else: the signal may interrupt a line that is being written

        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, end) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _began(program: Program) -> str:
    if program.port is None:
        return f"{program.name} has started"
    return f"{program.name} is ready" + (f" at {program.url}" if program.url else "")
