"""Check that a resumed run has the prompts with which it began: the numbers of its groups mean rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from mor_core.errors import Invalid
from mor_core.prompt_index import PromptSet
from mor_core.prompt_sources import PromptFile
from pydantic import BaseModel

from mor_trainer.prompts.stored_checks import RunChecks


class PromptsHash(BaseModel):
    """Hash of what the prompts of one file of a run say and show."""

    file: PromptFile
    sha256: str

    @classmethod
    def of(cls, file: PromptFile, prompts: PromptSet) -> PromptsHash:
        return cls(file=file, sha256=prompts.rows_sha256)


def check_unchanged(
    files: Mapping[PromptFile, PromptSet], begun_with: Sequence[PromptsHash], results: RunChecks | None
) -> None:
    """Check that the files of a run have the prompts that its checkpoint names.

    ``results``: of the check before its first step, which name the former indexes.

    Raises:
        Invalid: a file has others, with the first line that differs where the former index still exists.
    """
    for known in begun_with:
        prompts = files.get(known.file)
        if prompts is None or prompts.rows_sha256 == known.sha256:
            continue
        former = None if results is None else results.data(known.file)
        raise Invalid(
            f"the prompts of {known.file.path} are not those with which the run began{_difference(prompts, former)}; "
            "restore the file, or create a new run from the checkpoint's model"
        )


def _difference(prompts: PromptSet, former: str | None) -> str:
    """Say where prompts differ from those of the former index; nothing where that is gone."""
    if former is None:
        return ""
    with suppress(OSError, Invalid):
        before = PromptSet(prompts.folder.with_name(former))
        place = prompts.first_difference(before)
        if place is not None:
            return f" (the first change is in {place.file}:{place.line})"
        return f" ({len(prompts)} rows now, {len(before)} before)"
    return ""
