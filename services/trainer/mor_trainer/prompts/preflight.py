"""Check of all prompts of a run before its first step: each is read, and encoded as the stages will.

Bad rows are left out of the run by name; too many of them end it. A resumed run leaves out the same rows again, so that
the numbers of its groups keep their meaning.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

from mor_core.datafiles import Prompt
from mor_core.datafiles.sources.row_files import RowPlace
from mor_core.encoding_processes import EncodingProcesses
from mor_core.errors import DataFileError, Invalid, Unavailable
from mor_core.model_family import check_family
from mor_core.preflight_status import BadPrompt, PreflightStatus
from mor_core.prompt_index import PromptSet
from mor_core.prompt_limits import PromptLimits
from mor_core.prompt_sources import PromptFile
from mor_core.runs import RunSpec

from mor_trainer.config import WorkerSettings
from mor_trainer.prompts.run_prompts import SHOWN, SHOWN_CHARACTERS, listed_rows
from mor_trainer.prompts.source_prompts import training_prompts
from mor_trainer.prompts.stored_checks import (
    MOST_CHARACTERS,
    MOST_LISTED,
    MOST_LISTED_OF_RUN,
    FileCheck,
    FileCheckStore,
    RunChecks,
    StoredCheck,
    check_key,
    read_run_checks,
    write_run_checks,
)

T = TypeVar("T")
_State = Literal["reading", "checking", "done"]

_MOST_PROCESSES = 8
"""Processes on a machine of more cores, which may be those of a node and not of the container."""
_TELL_S = 0.5
"""Seconds between reports of progress; heartbeats carry them every few seconds."""


class TooManyBadPrompts(Invalid):
    """More rows of a file are bad than ``max_bad_prompts`` allows."""

    def __init__(self, run: str, path: str, result: FileCheck, share: float) -> None:
        allowed = math.ceil(share * result.rows)
        super().__init__(
            f"{result.bad} of {result.rows} prompts of {path} cannot be used, max_bad_prompts={share:g} allows "
            f"{allowed} and one must be left: {listed_rows(result.listed, result.bad)}. Correct or remove these rows "
            f"('mor run bad-prompts {run}' lists them), or raise max_bad_prompts, and create the run again"
        )


class Preflight:
    """Check of the prompts of one run."""

    def __init__(
        self,
        settings: WorkerSettings,
        run: str,
        spec: RunSpec,
        run_folder: Path,
        *,
        limits: PromptLimits,
        report: Callable[[PreflightStatus], None],
        obey: Callable[[], object],
        when_room: Callable[[str, Callable[[], None]], None] = lambda what, write: write(),
        staging: Path | None = None,
    ) -> None:
        """Initialise the check.

        ``limits``: those of engine and trainer. ``report`` takes the progress. ``obey`` is called about twice a second
        and raises where the run must end. ``when_room`` repeats a write, which it names, while the disk is full.
        ``staging``: folder through which results are written beside the run.
        """
        self._settings, self._run, self._spec, self._folder = settings, run, spec, run_folder
        self._limits = limits
        self._staging = staging
        self._report = report
        self._obey = obey
        self._when_room = when_room
        self._shared = FileCheckStore(settings.checks_dir or settings.runs_dir / "checks")
        self._rows = self._bad = 0
        self._total: int | None = None
        self._found: list[BadPrompt] = []
        self._told = 0.0

    def report_reading(self, rows: int) -> None:
        """Report the number of rows read so far of files that have no index yet."""
        self._tell_sometimes("reading", rows, 0)

    def run(self, files: Mapping[PromptFile, PromptSet]) -> RunChecks:
        """Check each of the run's files whose result is not known; store the results beside the run and return them.

        Raises:
            TooManyBadPrompts: a file has more bad rows than the run allows, or only bad ones.
            Invalid: a source has no row, or the model is of a family that cannot be trained.
        """
        before = read_run_checks(self._folder) or RunChecks(files=())
        training_prompts(self._spec, files, {})  # a domain that no row has is told before the long work
        self._total = sum(len(prompts) + len(prompts.problems) for prompts in files.values())
        stored = []
        room = MOST_LISTED_OF_RUN
        for file, prompts in files.items():
            data = prompts.folder.name
            result = before.of(file, data) or self._result(prompts)
            self._rows += result.rows
            self._bad += result.bad
            self._found = [*self._found, *result.listed][:SHOWN]
            listed, room = result.listed[:room], max(0, room - len(result.listed))
            kept = result.model_copy(update={"listed": listed})
            stored.append(StoredCheck(file=file, data=data, result=kept))
        results = RunChecks(files=tuple(stored))
        self._when_room(
            "the result of the check of the prompts", lambda: write_run_checks(self._folder, results, self._staging)
        )
        self._tell("done", self._rows, self._bad)
        for one in stored:
            allowed = math.ceil(self._spec.max_bad_prompts * one.result.rows)
            if one.result.bad > min(allowed, one.result.rows - 1):
                raise TooManyBadPrompts(self._run, one.file.path, one.result, self._spec.max_bad_prompts)
        return results

    def report_known(self, files: Mapping[PromptFile, PromptSet], known: RunChecks | None) -> None:
        """Report the end of the reading, where there was any, of a run that goes on with the results that it has."""
        if not self._told:
            return
        results = [] if known is None else [stored.result for stored in known.files]
        self._total = sum(len(prompts) + len(prompts.problems) for prompts in files.values())
        self._found = [row for result in results for row in result.listed][:SHOWN]
        self._tell("done", self._total, sum(result.bad for result in results))

    def _result(self, prompts: PromptSet) -> FileCheck:
        """Return the result of an earlier check of the same content, or check a file."""
        key = check_key(prompts.folder.name, self._spec.model, self._limits)
        if key is not None and (known := self._shared.read(key)) is not None:
            return known
        rows = _Rows(prompts)
        result = self._check(prompts, rows)
        if key is not None and not rows.changed:  # another run may find the pictures in their place again
            self._shared.write(key, result)
        return result

    def _check(self, prompts: PromptSet, rows: _Rows) -> FileCheck:
        """Encode each row that can be read."""
        settings = self._settings
        self._tell("checking", self._rows, self._bad)  # the processes take seconds to start
        check_family(self._spec.model)
        bad = [_bad_prompt(row.place, row.name, row.problem or "") for row in islice(prompts.problems, MOST_LISTED)]
        unreadable, encoded = len(prompts.problems), 0
        left_out: list[int] = []
        processes = EncodingProcesses[int](
            self._spec.model,
            self._limits,
            settings.check_processes or min(_MOST_PROCESSES, len(os.sched_getaffinity(0))),
            settings.encode_timeout_s,
        )
        with closing(processes.encode(iter(rows))) as answers:
            for answer in self._obeyed(answers):
                for row, problem in rows.take_unread() + ([] if answer is None else [answer]):
                    encoded += 1
                    if problem is not None:
                        left_out.append(row)
                        if len(bad) < 2 * MOST_LISTED:
                            bad.append(_bad_prompt(prompts.place(row), prompts.ids[row], problem))
                done, found = unreadable + encoded, unreadable + len(left_out)
                self._tell_sometimes("checking", self._rows + done, self._bad + found, bad)
        bad.sort(key=lambda row: (row.file, row.line))
        return FileCheck(
            rows=unreadable + encoded,
            bad=unreadable + len(left_out),
            left_out=tuple(sorted(left_out)),
            listed=tuple(bad[:MOST_LISTED]),
        )

    def _obeyed(self, answers: Iterator[T]) -> Iterator[T]:
        """Obey between the answers, and before an error: a signal that ends this process may have ended the others."""
        try:
            for answer in answers:
                self._obey()
                yield answer
        except (Unavailable, OSError, EOFError):
            self._obey()
            raise

    def _tell_sometimes(self, state: _State, rows: int, bad: int, found: Sequence[BadPrompt] = ()) -> None:
        if time.monotonic() - self._told > _TELL_S:
            self._tell(state, rows, bad, found)

    def _tell(self, state: _State, rows: int, bad: int, found: Sequence[BadPrompt] = ()) -> None:
        self._told = time.monotonic()
        shown = [*self._found, *found[:SHOWN]][:SHOWN]
        self._report(
            PreflightStatus(
                state=state,
                rows=rows,
                total=self._total,
                bad=bad,
                found=tuple(row.model_copy(update={"problem": row.problem[:SHOWN_CHARACTERS]}) for row in shown),
            )
        )


class _Rows:
    """Rows of a file on their way to the processes that encode them."""

    def __init__(self, prompts: PromptSet) -> None:
        self._prompts = prompts
        self._unread: list[tuple[int, str | None]] = []
        self.changed = False
        """True once a picture was not what was indexed."""

    def __iter__(self) -> Iterator[tuple[int, Prompt] | None]:
        for row in range(len(self._prompts)):
            try:
                prompt = self._prompts[row]
            except DataFileError as error:  # a picture has changed since the file was indexed
                self.changed = True
                self._unread.append((row, str(error)))
                yield None
            else:
                yield row, prompt

    def take_unread(self) -> list[tuple[int, str | None]]:
        """Return the rows that could not be read since the last call, with the reasons."""
        taken, self._unread = self._unread, []
        return taken


def _bad_prompt(place: RowPlace, name: str, problem: str) -> BadPrompt:
    return BadPrompt(file=str(place.file), line=place.line, id=name, problem=problem[:MOST_CHARACTERS])
