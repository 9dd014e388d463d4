"""Prompts of a run, opened through their indexes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mor_core.prompt_index import PromptSet, open_prompts, sweep_indexes
from mor_core.runs import RunSpec

from mor_trainer.config import WorkerSettings


@dataclass(frozen=True)
class RunPrompts:
    """Prompts that a run trains on, and those that it is evaluated on."""

    training: PromptSet
    evaluation: PromptSet | None

    @classmethod
    def open(cls, settings: WorkerSettings, spec: RunSpec, check: Callable[[], None]) -> RunPrompts:
        """Open the files of a run, which takes a pass over each that has no index yet.

        ``check`` is called during that pass; what it raises ends it.

        Raises:
            MorError: as ``open_prompts``.
        """
        folder = settings.prompt_index_dir
        training, *evaluation = (
            open_prompts(Path(file), spec.prompt_columns, index_dir=folder, progress=lambda rows: check())
            for file in filter(None, (spec.prompts, spec.evaluation_prompts))
        )
        sweep_indexes(folder, settings.index_unused_days, settings.index_bytes)
        return cls(training, evaluation[0] if evaluation else None)
