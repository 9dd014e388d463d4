"""Check of all prompts of a run before its first step: each is read, and encoded as the stages will.

Bad rows are left out of the run by name; too many of them end it. A resumed run leaves out the same rows again, so that
the numbers of its groups keep their meaning.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Literal

from mor_core.errors import Invalid
from mor_core.prompt_check import PromptCheck, RowProblem
from mor_core.prompt_limits import PromptLimits
from mor_core.run_status import BadPrompt, PreflightStatus
from mor_core.runs import RunSpec

from mor_trainer.config import WorkerSettings
from mor_trainer.prompts.check_results import (
    MOST_LISTED,
    FileCheck,
    FileCheckStore,
    PromptRole,
    RunChecks,
    check_key,
    data_fingerprint,
    read_run_results,
    write_run_results,
)
from mor_trainer.prompts.run_prompts import SHOWN, SHOWN_CHARACTERS, listed_rows, prompt_files

_MOST_PROCESSES = 8
"""Processes on a machine of more cores, which may be those of a node and not of the container."""
_TELL_S = 0.5
"""Seconds between reports of progress; heartbeats carry them every few seconds."""


class TooManyBadPrompts(Invalid):
    """More rows are bad than ``max_bad_prompts`` allows."""

    def __init__(self, run: str, role: PromptRole, result: FileCheck, share: float) -> None:
        allowed = math.ceil(share * result.rows)
        super().__init__(
            f"{result.bad} of {result.rows} {role.replace('_', ' ')} cannot be used, max_bad_prompts={share:g} allows "
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
    ) -> None:
        """Initialise the check.

        ``limits``: those of engine and trainer. ``report`` takes the progress. ``obey`` is called about twice a second
        and raises where the run must end.
        """
        self._settings, self._run, self._spec, self._folder = settings, run, spec, run_folder
        self._limits = limits
        self._report = report
        self._obey = obey
        self._shared = FileCheckStore(settings.checks_dir or settings.runs_dir / "checks")
        self._rows = self._bad = 0
        self._total: int | None = None
        self._found: list[BadPrompt] = []
        self._told = 0.0

    def run(self) -> RunChecks:
        """Check each file whose result is not known, and store the results beside the run.

        Raises:
            TooManyBadPrompts: a file has more bad rows than the run allows, or only bad ones.
            Invalid: a file cannot be read at all.
        """
        before = read_run_results(self._folder) or RunChecks()
        results = RunChecks()
        for role, path in prompt_files(self._spec).items():
            data = data_fingerprint(path, self._spec.prompt_columns)
            result = before.of(role, data) or self._result(path, data)
            results = results.with_result(role, data, result)
        write_run_results(self._folder, results)
        self._total = self._rows = sum(stored.result.rows for stored in results.files.values())
        self._bad = sum(stored.result.bad for stored in results.files.values())
        self._found = [row for stored in results.files.values() for row in stored.result.listed][:SHOWN]
        self._tell("done")
        for role, stored in results.files.items():
            allowed = math.ceil(self._spec.max_bad_prompts * stored.result.rows)
            if stored.result.bad > min(allowed, stored.result.rows - 1):
                raise TooManyBadPrompts(self._run, role, stored.result, self._spec.max_bad_prompts)
        return results

    def _result(self, path: str, data: str | None) -> FileCheck:
        """Return the result of an earlier check of the same content, or check a file."""
        key = check_key(data, self._spec.model, self._limits)
        if key is not None and (known := self._shared.read(key)) is not None:
            return known
        result = self._check(path)
        if key is not None:
            self._shared.write(key, result)
        return result

    def _check(self, path: str) -> FileCheck:
        settings, spec = self._settings, self._spec
        check = PromptCheck(
            Path(path),
            spec.prompt_columns,
            model=spec.model,
            limits=self._limits,
            processes=settings.check_processes or min(_MOST_PROCESSES, len(os.sched_getaffinity(0))),
            row_s=settings.encode_timeout_s,
        )
        rows = 0
        bad: list[RowProblem] = []
        self._tell("checking")
        with closing(check.run()) as parts:
            for part in parts:
                self._obey()
                rows += part.rows
                bad += part.bad
                self._rows, self._bad = self._rows + part.rows, self._bad + len(part.bad)
                self._found += [_entry(row) for row in part.bad[: max(0, SHOWN - len(self._found))]]
                if time.monotonic() - self._told > _TELL_S:
                    self._tell("checking")
        bad.sort(key=lambda row: (row.file, row.line))
        return FileCheck(
            rows=rows,
            bad=len(bad),
            left_out=tuple(sorted(row.index for row in bad if row.index is not None)),
            listed=tuple(_entry(row) for row in bad[:MOST_LISTED]),
        )

    def _tell(self, state: Literal["checking", "done"]) -> None:
        self._told = time.monotonic()
        found = tuple(row.model_copy(update={"problem": row.problem[:SHOWN_CHARACTERS]}) for row in self._found)
        self._report(PreflightStatus(state=state, rows=self._rows, total=self._total, bad=self._bad, found=found))


def _entry(row: RowProblem) -> BadPrompt:
    return BadPrompt(file=row.file, line=row.line, id=row.id, problem=row.problem)
