"""Prompts of a run as it draws them: all rows of its files but those that their check has found bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mor_core.datafiles import Prompt, read_prompts
from mor_core.run_status import BadPrompt
from mor_core.runs import RunSpec

from mor_trainer.prompts.check_results import PromptRole, RunChecks
from mor_trainer.prompts.usable_prompts import UsablePrompts

SHOWN = 20
"""Bad rows in status, alert and error of a run."""
SHOWN_CHARACTERS = 300
"""Characters of a row's reason there."""


@dataclass(frozen=True)
class RunPrompts:
    """Prompts of a run, without the rows that are left out."""

    training: Sequence[Prompt]
    evaluation: Sequence[Prompt]
    results: RunChecks | None
    """Results of the check; ``None`` for a run that began without one."""

    @classmethod
    def open(cls, spec: RunSpec, results: RunChecks | None) -> RunPrompts:
        """Open the files of a run.

        Raises:
            Invalid: there is no such file, or a row cannot be read and was not checked.
        """
        files: list[Sequence[Prompt]] = []
        for role, path in prompt_files(spec).items():
            stored = None if results is None else results.files.get(role)
            readable = read_prompts(Path(path), spec.prompt_columns, None if stored is None else [])
            files.append(UsablePrompts(readable, () if stored is None else stored.result.left_out))
        return cls(files[0], files[1] if len(files) > 1 else (), results)

    @property
    def left_out(self) -> int:
        """Number of training prompts that are left out."""
        stored = None if self.results is None else self.results.files.get("prompts")
        return 0 if stored is None else stored.result.bad

    def left_out_summary(self, run: str) -> str | None:
        """Describe the rows that are left out, for an alert; ``None`` where there are none."""
        results = [] if self.results is None else [stored.result for stored in self.results.files.values()]
        bad = sum(result.bad for result in results)
        if not bad:
            return None
        listed = listed_rows([row for result in results for row in result.listed], bad)
        rows = sum(result.rows for result in results)
        return f"{bad} of {rows} prompts are left out: {listed}. 'mor run bad-prompts {run}' lists them"


def prompt_files(spec: RunSpec) -> dict[PromptRole, str]:
    """Return the files of prompts that a run names."""
    files: dict[PromptRole, str] = {"prompts": spec.prompts}
    return files if spec.evaluation_prompts is None else {**files, "evaluation_prompts": spec.evaluation_prompts}


def listed_rows(rows: Sequence[BadPrompt], bad: int) -> str:
    """Name the first rows of ``bad`` bad ones in a sentence."""
    return "; ".join(map(_shown, rows[:SHOWN])) + ("; …" if bad > SHOWN else "")


def _shown(row: BadPrompt) -> str:
    name = f" {row.id[:80]!r}" if row.id else ""
    return f"{row.file}:{row.line}{name}: {row.problem[:SHOWN_CHARACTERS]}"
