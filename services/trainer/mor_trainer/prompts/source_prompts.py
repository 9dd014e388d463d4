"""Prompts of a run: those of its sources, one source after the other."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from mor_core.datafiles import Prompt
from mor_core.errors import Invalid
from mor_core.prompt_index import PromptSet
from mor_core.prompt_sources import PromptFile
from mor_core.runs import RunSpec

_SHOWN_DOMAINS = 10
"""Domain labels of a file that an error lists."""

T = TypeVar("T")


@dataclass(frozen=True)
class SourceRows:
    """Rows of one file that belong to a source."""

    name: str
    """Name of the source; empty leaves ids as they are."""
    prompts: PromptSet
    rows: Sequence[int]


SourcePlace = tuple[str, Path, Sequence[int]]
"""Name of a source, folder of its file's index, and its rows: what another process opens it by."""


class SourcePrompts(Sequence[Prompt]):
    """View of the prompts of several sources as one sequence. The id of a prompt begins with the name of its source.

    A prompt is read when it is asked for; see ``PromptSet`` for the errors.
    """

    def __init__(self, sources: Sequence[SourceRows]) -> None:
        self._sources = tuple(sources)
        self.rows = tuple(len(source.rows) for source in self._sources)
        """Number of prompts of each source."""
        self._ends = list(accumulate(self.rows))

    @classmethod
    def of_file(cls, prompts: PromptSet) -> SourcePrompts:
        """Return all prompts of one file."""
        return cls([SourceRows("", prompts, range(len(prompts)))])

    @classmethod
    def at(cls, places: Iterable[SourcePlace]) -> SourcePrompts:
        """Open the prompts that another process has described by ``places``.

        Raises:
            FileNotFoundError: this process finds no such index.
            Invalid: it is damaged.
        """
        return cls([SourceRows(name, PromptSet(folder), rows) for name, folder, rows in places])

    @property
    def places(self) -> tuple[SourcePlace, ...]:
        return tuple((source.name, source.prompts.folder, source.rows) for source in self._sources)

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the prompts, without the rest of them."""
        return _Values(self, lambda source, row: _named(source, source.prompts.ids[row]))

    @property
    def domains(self) -> Sequence[str | None]:
        return _Values(self, lambda source, row: source.prompts.domains[row])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        source, row = self.locate(index)
        prompt = source.prompts[row]
        return replace(prompt, id=_named(source, prompt.id)) if source.name else prompt

    def locate(self, index: int) -> tuple[SourceRows, int]:
        """Return the source of a prompt and its row among those of the file."""
        place = range(len(self))[index]
        source = bisect_right(self._ends, place)
        found = self._sources[source]
        return found, found.rows[place - self._ends[source] + self.rows[source]]


class _Values(Sequence[T], Generic[T]):
    """Value of each prompt."""

    def __init__(self, prompts: SourcePrompts, value: Callable[[SourceRows, int], T]) -> None:
        self._prompts = prompts
        self._value = value

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return self._value(*self._prompts.locate(index))


def training_prompts(
    spec: RunSpec, files: Mapping[PromptFile, PromptSet], left_out: Mapping[PromptFile, Collection[int]]
) -> SourcePrompts:
    """Return the prompts of a run's sources.

    ``files``: those of ``spec.training_files()``, at least. ``left_out``: the rows of each file that are never drawn.

    Raises:
        Invalid: no row has the domain of a source.
    """
    usable = {file: usable_rows(prompts, left_out.get(file, ())) for file, prompts in files.items()}
    domains = _domain_rows(spec, files)
    if not spec.sources:
        [file] = spec.training_files()
        return SourcePrompts([SourceRows("", files[file], usable[file])])
    found = []
    for source in spec.sources:
        file = source.file(spec.prompt_columns)
        if source.domain is None:
            rows = usable[file]
        elif not (rows := domains[file, source.domain]):
            raise _no_such_domain(source.name, source.domain, files[file])
        elif skipped := frozenset(left_out.get(file, ())):
            rows = array("I", (row for row in rows if row not in skipped))
        if not rows:
            raise Invalid(f"source {source.name!r} has no prompt that can be drawn; correct its rows or leave it out")
        found.append(SourceRows(source.name, files[file], rows))
    return SourcePrompts(found)


def usable_rows(prompts: PromptSet, left_out: Collection[int]) -> Sequence[int]:
    """Return the rows that are not left out, in their order."""
    if not left_out:
        return range(len(prompts))
    skipped = frozenset(left_out)
    return array("I", (row for row in range(len(prompts)) if row not in skipped))


def _domain_rows(spec: RunSpec, files: Mapping[PromptFile, PromptSet]) -> dict[tuple[PromptFile, str], array[int]]:
    """Return the rows of each domain that a source wants, in one pass over each file, however many share it."""
    found: dict[tuple[PromptFile, str], array[int]] = {
        (source.file(spec.prompt_columns), source.domain): array("I")
        for source in spec.sources
        if source.domain is not None
    }
    for file in {file for file, _ in found}:
        for row, label in enumerate(files[file].domains):
            if label is not None and (rows := found.get((file, label))) is not None:
                rows.append(row)
    return found


def _no_such_domain(source: str, domain: str, prompts: PromptSet) -> Invalid:
    labels = sorted({label for label in prompts.domains if label})
    shown = ", ".join(map(repr, labels[:_SHOWN_DOMAINS])) + (", …" if len(labels) > _SHOWN_DOMAINS else "")
    return Invalid(
        f"source {source!r}: no row has the domain {domain!r}; "
        + (f"the file has {shown}: name one of these" if labels else "the file has no domain labels: leave it out")
        + (f" ({len(prompts.problems)} more rows cannot be read)" if prompts.problems else "")
    )


def _named(source: SourceRows, name: str) -> str:
    return f"{source.name}/{name}" if source.name else name
