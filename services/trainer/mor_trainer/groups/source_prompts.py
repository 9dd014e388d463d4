"""Prompts of a run: those of its sources, one source after the other."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import overload

from mor_core.datafiles import Prompt, read_prompts
from mor_core.errors import Invalid
from mor_core.prompt_sources import PromptFile
from mor_core.runs import RunSpec

_SHOWN_DOMAINS = 10
"""Domain labels of a file that an error lists."""


class SourcePrompts(Sequence[Prompt]):
    """View of the prompts of several sources as one sequence. The id of a prompt begins with the name of its source."""

    def __init__(self, sources: Sequence[tuple[str, Sequence[Prompt], Sequence[int]]]) -> None:
        """``sources``: name, prompts of the file, and the rows of it that belong to the source; a source without a name
        leaves ids as they are."""
        self._sources = sources
        self.rows = tuple(len(rows) for _, _, rows in sources)
        """Number of prompts of each source."""
        self._ends = list(accumulate(self.rows))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        source = bisect_right(self._ends, place)
        name, prompts, rows = self._sources[source]
        prompt = prompts[rows[place - self._ends[source] + len(rows)]]
        return replace(prompt, id=f"{name}/{prompt.id}") if name else prompt


def read_source_prompts(spec: RunSpec) -> SourcePrompts:
    """Read the prompts that a run is trained on; a file of several sources is read once.

    Raises:
        DataFileError: a file has an invalid row.
        Invalid: there is no such file, its columns do not fit, or no row has the domain of a source.
    """
    return select_sources(spec, {file: read_prompts(Path(file.path), file.columns) for file in spec.training_files()})


def select_sources(spec: RunSpec, files: Mapping[PromptFile, Sequence[Prompt]]) -> SourcePrompts:
    """Return the prompts of a run's sources, out of those of all its ``files``.

    Raises:
        Invalid: no row has the domain of a source.
    """
    if not spec.sources:
        [prompts] = files.values()
        return SourcePrompts([("", prompts, range(len(prompts)))])
    found = [(source, files[source.file(spec.prompt_columns)]) for source in spec.sources]
    return SourcePrompts(
        [(source.name, prompts, _rows_of(prompts, source.name, source.domain)) for source, prompts in found]
    )


def _rows_of(prompts: Sequence[Prompt], source: str, domain: str | None) -> Sequence[int]:
    """Return the rows with a domain label.

    Raises:
        Invalid: there is none.
    """
    if domain is None:
        return range(len(prompts))
    domains = [prompt.domain for prompt in prompts]
    rows = array("I", (row for row, label in enumerate(domains) if label == domain))
    if not rows:
        labels = sorted({label for label in domains if label})
        shown = ", ".join(map(repr, labels[:_SHOWN_DOMAINS])) + (", …" if len(labels) > _SHOWN_DOMAINS else "")
        raise Invalid(
            f"source {source!r}: no row has the domain {domain!r}; "
            + (f"the file has {shown}: name one of these" if labels else "the file has no domain labels: leave it out")
        )
    return rows
