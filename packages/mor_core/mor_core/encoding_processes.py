"""Processes that encode prompts, of which one may hang or die and costs only the row that it works on."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.context import ForkServerContext
from typing import Any, Generic, TypeVar

from mor_core import images, logs, vision
from mor_core.datafiles import Prompt
from mor_core.errors import Unavailable
from mor_core.failures import describe_failure
from mor_core.image_budget import ImageBudget
from mor_core.pixel_hash import PIXEL_FIELDS
from mor_core.prompt_limits import PromptLimits

Key = TypeVar("Key")
Row = tuple[Key, Prompt]

_BATCH = 16
"""Rows that a process gets at a time."""
_TICK_S = 0.5
"""Longest wait for an answer, seconds, after which the caller may end the work."""
_START_S = 300.0
"""Longest start of a process, seconds: it imports torch and transformers, perhaps on a busy machine."""
_ENDS_AFTER = 2.0
"""Multiple of a row's time after which its process ends by itself: the one that would end it may have been killed."""
_MOST_LOSSES = 100
"""Processes that may be lost in all: beyond it the machine or the model is at fault, not single rows."""
_PRELOADED = ["transformers.models.auto.processing_auto", "transformers.models.auto.image_processing_auto", __name__]
"""Modules that are imported once for all processes."""


class EncodingProcesses(Generic[Key]):
    """Processes that encode rows by a checkpoint's processor, as the stages do, each one batch at a time."""

    def __init__(self, model: str, limits: PromptLimits, processes: int, row_s: float) -> None:
        """``row_s``: longest encoding of a row, seconds."""
        self._model = model
        self._limits = limits
        self._most = processes
        self._row_s = row_s
        # Forks of a process that has the libraries and no threads start in milliseconds.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        self._processes: list[_EncodingProcess[Key]] = []
        self._more = True
        """True until the rows are exhausted."""
        self._returned: deque[Row[Key]] = deque()
        """Rows of lost processes, which are encoded once more."""
        self._suspects: list[Key] = []
        """Rows in whose encoding a process ended once."""
        self._losses = 0

    def encode(self, rows: Iterator[Row[Key] | None]) -> Generator[tuple[Key, str | None] | None, None, None]:
        """Yield the key of each row with its problem, if it has one; in between ``None``, about every half second.

        ``rows`` may yield ``None`` where it has nothing to encode for the moment.

        Raises:
            Unavailable: the processes cannot start, or too many of them ended.
        """
        try:
            while self._more or self._returned or any(process.rows for process in self._processes):
                self._hand_out(rows)
                yield from self._answers()
                yield None
        finally:
            for process in self._processes:
                process.kill()
            self._processes.clear()

    def _hand_out(self, rows: Iterator[Row[Key] | None]) -> None:
        """Give a batch to each process without work."""
        while self._more or self._returned:
            idle = next((process for process in self._processes if not process.rows), None)
            if idle is None and len(self._processes) >= self._most:
                return
            batch = self._batch(rows)
            if not batch:
                return
            if idle is None:
                self._processes.append(_EncodingProcess(self._context, self._model, self._limits, self._row_s, batch))
            else:
                idle.give(batch)

    def _batch(self, rows: Iterator[Row[Key] | None]) -> list[Row[Key]]:
        if self._returned:
            return [self._returned.popleft()]  # alone, so that another loss has one cause
        taken = list(islice(rows, _BATCH))
        self._more = len(taken) == _BATCH
        return [row for row in taken if row is not None]

    def _answers(self) -> Iterator[tuple[Key, str | None]]:
        """Yield the answers that have arrived, and give up the rows of processes that ended or take too long."""
        busy = {process.connection: process for process in self._processes if process.rows}
        for connection in wait_for_any(list(busy), _TICK_S) if busy else ():
            process = busy[connection]  # type: ignore[index]
            try:
                answer = process.read()
            except (EOFError, OSError):
                yield from self._lost(process)
            else:
                if answer is not None:
                    yield answer
        for process in busy.values():
            if not process.is_late(self._row_s):
                continue
            if not process.ready:
                raise Unavailable(f"a process that encodes prompts did not start within {_START_S:g} s")
            (key, _), *others = process.rows
            self._remove(process, others)
            yield key, f"not encoded within {self._row_s:g} s"

    def _lost(self, process: _EncodingProcess[Key]) -> Iterator[tuple[Key, str | None]]:
        """Encode the rows of a process that ended again; give up the first if it ended a process before."""
        ending = process.ending()
        if not process.ready:
            raise Unavailable(f"a process that encodes prompts ended at its start ({ending}); use fewer processes")
        (key, prompt), *others = process.rows
        if key in self._suspects:
            self._remove(process, others)
            yield key, f"the process that encoded it ended ({ending})"
        else:
            self._suspects.append(key)
            self._remove(process, [(key, prompt), *others])

    def _remove(self, process: _EncodingProcess[Key], returned: list[Row[Key]]) -> None:
        process.kill()
        self._processes.remove(process)
        self._returned.extend(returned)
        self._losses += 1
        if self._losses > _MOST_LOSSES:
            raise Unavailable(
                f"{self._losses} processes that encode prompts ended or took over {self._row_s:g} s for a row; "
                "check the machine's memory, or use fewer processes"
            )


class _EncodingProcess(Generic[Key]):
    """One process and the rows that it has not answered yet, of which it encodes the first."""

    def __init__(
        self, context: ForkServerContext, model: str, limits: PromptLimits, row_s: float, rows: list[Row[Key]]
    ) -> None:
        self.connection, theirs = context.Pipe()
        given = (theirs, logs.for_children(), model, limits, _ENDS_AFTER * row_s)
        self._process = context.Process(target=_serve, args=given, daemon=True)
        self._process.start()
        theirs.close()
        self.rows = deque(rows)
        self.ready = False
        """True once the processor is loaded."""
        self._since = time.monotonic()
        """Time of its start, or of its last answer."""

    def give(self, rows: list[Row[Key]]) -> None:
        """Send rows to a process that has none."""
        self.rows = deque(rows)
        self._since = time.monotonic()
        with contextlib.suppress(OSError):  # it has ended, which its connection says
            self.connection.send([prompt for _, prompt in rows])

    def read(self) -> tuple[Key, str | None] | None:
        """Read one message: the answer to the first row, or that the process is ready.

        Raises:
            EOFError, OSError: the process has ended.
            Unavailable: it cannot load the processor.
        """
        problem: str | None = self.connection.recv()
        self._since = time.monotonic()
        if self.ready:
            return self.rows.popleft()[0], problem
        if problem is not None:
            raise Unavailable(f"a process that encodes prompts cannot load the model's processor: {problem}")
        self.ready = True
        self.give(list(self.rows))
        return None

    def is_late(self, row_s: float) -> bool:
        """Return whether an answer, or the start, is overdue."""
        limit = row_s if self.ready else _START_S
        return bool(self.rows) and time.monotonic() - self._since > limit and not self.connection.poll()

    def ending(self) -> str:
        """Describe how the process ended."""
        self._process.join(_TICK_S)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"exit status {code}"
        memory = ", perhaps out of memory" if -code == signal.SIGKILL else ""
        return f"{signal.Signals(-code).name}{memory}"

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(
    connection: Connection, configure_logs: Callable[[], None], model: str, limits: PromptLimits, longest_s: float
) -> None:
    """Encode rows in a process of its own until the other end is closed, or a row takes ``longest_s``."""
    configure_logs()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one ends this
    with contextlib.suppress(EOFError, OSError):
        try:
            import torch

            torch.set_num_threads(1)
            processor = vision.load_processor(model)
        except Exception as error:
            connection.send(describe_failure(error))
            return
        connection.send(None)
        while True:
            for prompt in connection.recv():
                signal.setitimer(signal.ITIMER_REAL, longest_s)
                problem = problem_of(processor, limits, prompt)
                signal.setitimer(signal.ITIMER_REAL, 0)
                connection.send(problem)


def problem_of(processor: Any, limits: PromptLimits, prompt: Prompt) -> str | None:
    """Encode a prompt as engine and trainer do, and return the reason why that fails, if it does."""
    try:
        limits.check_messages(prompt.messages)
        budget = ImageBudget(limits.image_bytes)
        for content in prompt.images.values():
            budget.spend(content)
        decoded = {digest: images.decode(content) for digest, content in prompt.images.items()}
        inputs = vision.encode_prompt(processor, prompt.messages, decoded)
        limits.check_tokens(inputs["input_ids"].shape[1])
        if decoded and not any(field in inputs for field in PIXEL_FIELDS):
            return f"the model's processor makes no pixels of the {len(decoded)} images; use its own processor files"
    except Exception as error:  # whatever fails, it is this row that no run can use
        return describe_failure(error)
    return None
