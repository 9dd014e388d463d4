"""Prompts of a run as it draws them: all rows of its files but those that their check has found bad."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mor_core.preflight_status import BadPrompt
from mor_core.prompt_index import PromptSet, open_prompts, refuse_problems, sweep_indexes
from mor_core.prompt_sources import PromptFile
from mor_core.runs import RunSpec

from mor_trainer.config import WorkerSettings
from mor_trainer.prompts.prompt_hashes import PromptsHash
from mor_trainer.prompts.source_prompts import SourcePrompts, SourceRows, training_prompts, usable_rows
from mor_trainer.prompts.stored_checks import RunChecks

SHOWN = 20
"""Bad rows in the status of a run."""
_NAMED = 5
"""Bad rows that a sentence names."""
SHOWN_CHARACTERS = 300
"""Characters of a row's reason there."""


@dataclass(frozen=True)
class RunPrompts:
    """Prompts of a run, without the rows that are left out."""

    training: SourcePrompts
    evaluation: SourcePrompts
    left_out: int
    """Number of training prompts that are left out."""
    hashes: tuple[PromptsHash, ...]
    """Of all files, for the run's checkpoints."""
    summary: str | None
    """Sentence about all rows that are left out; ``None`` where there are none."""

    @classmethod
    def of(
        cls, run: str, spec: RunSpec, files: Mapping[PromptFile, PromptSet], results: RunChecks | None
    ) -> RunPrompts:
        """Leave out the bad rows of the run's ``files``. ``results``: of their check; ``None``: they had none.

        Raises:
            DataFileError: a row cannot be read, and there was no check.
            Invalid: a source has no prompt.
        """
        if results is None:
            for file, prompts in files.items():
                refuse_problems(Path(file.path), prompts)
        checked = RunChecks(files=()) if results is None else results
        left_out = {file: checked.left_out(file) for file in files}
        asked = spec.evaluation_file()
        evaluation = [] if asked is None else [SourceRows("", files[asked], usable_rows(files[asked], left_out[asked]))]
        return cls(
            training_prompts(spec, {file: files[file] for file in spec.training_files()}, left_out),
            SourcePrompts(evaluation),
            sum(stored.result.bad for stored in checked.files if stored.file in spec.training_files()),
            tuple(PromptsHash.of(file, prompts) for file, prompts in files.items()),
            _summary(run, checked),
        )


def open_files(
    settings: WorkerSettings, spec: RunSpec, progress: Callable[[int], None], former: RunChecks | None = None
) -> dict[PromptFile, PromptSet]:
    """Open the files of a run, which takes a pass over each that has no index yet.

    ``progress`` receives the number of rows of all files that were read so far; what it raises ends the pass.
    ``former``: checks of the run, whose rows are opened again, even if pictures have changed since.

    Raises:
        MorError: as ``open_prompts``.
    """
    opened: dict[PromptFile, PromptSet] = {}
    before = 0
    for file in spec.prompt_files():
        opened[file] = prompts = open_prompts(
            Path(file.path),
            file.columns,
            index_dir=settings.prompt_index_dir,
            leave_out=True,
            former=None if former is None else former.data(file),
            progress=lambda rows, before=before: progress(before + rows),  # type: ignore[misc]
        )
        before += len(prompts) + len(prompts.problems)
    sweep_indexes(settings.prompt_index_dir, settings.index_unused_days, settings.index_bytes)
    return opened


def listed_rows(rows: Sequence[BadPrompt], bad: int) -> str:
    """Name the first rows of ``bad`` bad ones in a sentence."""
    return "; ".join(map(_shown, rows[:_NAMED])) + ("; …" if bad > _NAMED else "")


def _summary(run: str, results: RunChecks) -> str | None:
    found = [stored.result for stored in results.files]
    bad = sum(result.bad for result in found)
    if not bad:
        return None
    listed = listed_rows([row for result in found for row in result.listed], bad)
    rows = sum(result.rows for result in found)
    return f"{bad} of {rows} prompts are left out: {listed}. 'mor run bad-prompts {run}' lists them"


def _shown(row: BadPrompt) -> str:
    name = f" {row.id[:80]!r}" if row.id else ""
    return f"{row.file}:{row.line}{name}: {row.problem[:SHOWN_CHARACTERS]}"
