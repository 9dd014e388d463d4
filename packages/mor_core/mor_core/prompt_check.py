"""Check of a data set before a run: every row is read, and every prompt is encoded as engine and trainer will.

Rows are encoded by several processes, in batches, of which few are under way at a time; so the memory of a check does
not depend on the size of the data.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from mor_core.datafiles import ParsedRow, Preference, Prompt, scan_preferences, scan_prompts
from mor_core.datafiles.sources.row_files import RowPlace
from mor_core.encoding_processes import EncodingProcesses
from mor_core.errors import Invalid
from mor_core.model_family import check_family, model_length
from mor_core.prompt_limits import PromptLimits

_ROWS_FIRST, _BYTES_FIRST = 1024, 64 << 20
"""Rows, or bytes of their pictures, that are read before the model's processor is loaded."""
ROW_S = 60.0
"""Usual limit on the encoding of a row, seconds: far more than any picture within the limits needs."""

_Key = tuple[int, RowPlace, str]
"""Place of a row among those that can be read, its place in the data, and its id."""
_Row = tuple[_Key, Prompt]


@dataclass(frozen=True)
class RowProblem:
    """Row that no run can use."""

    file: str
    line: int
    """Line, row or sample in the file, from 1."""
    id: str
    """Empty where the row is too broken to have one."""
    problem: str
    index: int | None = None
    """Place among the rows that can be read, from 0; ``None`` for a row that cannot."""


@dataclass(frozen=True)
class CheckProgress:
    """Progress of a check since the last one: rows that are done, and those of them that are bad."""

    rows: int
    bad: tuple[RowProblem, ...]


@dataclass(frozen=True)
class PromptCheck:
    """Check of one data set."""

    data: Path
    columns: str = ""
    """Other names of its columns, see ``datafiles.ColumnMap``."""
    preferences: bool = False
    """True for pairs, of which the prompts are checked, and that both responses are there."""
    model: str | None = None
    """Checkpoint whose processor encodes the prompts; without it the rows are only read."""
    limits: PromptLimits = field(default_factory=PromptLimits)
    """Without a length, that of the model counts."""
    processes: int = 1
    row_s: float = ROW_S
    """Longest encoding of a row, seconds."""
    domains: tuple[str, ...] = ()
    """Labels that a row must have each, because a source of the run takes the rows with it."""

    def run(self) -> Generator[CheckProgress, None, None]:
        """Yield what is found as it is found, and at least twice a second while rows are encoded, to the end.

        Raises:
            Invalid: there is no such data set, no row has one of the domains, or the model has no processor that can be
                used.
            Unavailable: the processes cannot encode.
        """
        seen, lacking = 0, set(self.domains)
        for part in self._read(lacking) if self.model is None else self._encoded(self.model, lacking):
            seen += part.rows
            yield part
        if not seen:
            raise Invalid(f"{self.data}: no row that gives prompts; write one JSON object per line")
        if lacking:
            named = ", ".join(map(repr, sorted(lacking)))
            raise Invalid(
                f"{self.data}: no row that can be read has the domain {named} of a source; correct the source"
            )

    def _scanned(self) -> Iterator[ParsedRow[Any]]:
        return (scan_preferences if self.preferences else scan_prompts)(self.data, self.columns)

    def _read(self, lacking: set[str]) -> Iterator[CheckProgress]:
        unreadable: list[RowProblem] = []
        for row in self._readable(unreadable, lacking):
            if row is None:
                yield _told(unreadable)
                continue
            (index, place, name), prompt = row
            problem = _broken_limit(self.limits, prompt)
            yield CheckProgress(
                1, () if problem is None else (RowProblem(str(place.file), place.line, name, problem, index),)
            )

    def _encoded(self, model: str, lacking: set[str]) -> Iterator[CheckProgress]:
        """Read rows and encode them.

        A model takes seconds to load, so the first rows are read before that: a mistake in all rows is told at once.
        """
        unreadable: list[RowProblem] = []
        rows = self._readable(unreadable, lacking)
        first: list[_Row] = []
        size = 0
        for row in rows:
            if row is None:
                yield _told(unreadable)
                continue
            first.append(row)
            size += sum(map(len, row[1].images.values()))
            if len(first) == _ROWS_FIRST or size > _BYTES_FIRST:
                break
        if not first:
            return
        check_family(model)  # here first, so that a model that cannot be used is refused by name
        limits = self.limits
        if limits.model_len is None:
            limits = replace(limits, model_len=model_length(model))
        processes: EncodingProcesses[_Key] = EncodingProcesses(model, limits, self.processes, self.row_s)
        with closing(processes.encode(chain(first, rows))) as answers:
            for answer in answers:
                if answer is None:
                    yield _told(unreadable)
                    continue
                (index, place, name), problem = answer
                bad = () if problem is None else (RowProblem(str(place.file), place.line, name, problem, index),)
                yield CheckProgress(1, bad)

    def _readable(self, unreadable: list[RowProblem], lacking: set[str]) -> Iterator[_Row | None]:
        """Yield the rows that can be read, and ``None`` for each other one, which is added to ``unreadable``. Their
        domains are removed from ``lacking``."""
        index = 0
        for row in self._scanned():
            if row.value is None:
                unreadable.append(RowProblem(str(row.place.file), row.place.line, row.name, row.problem or ""))
                yield None
                continue
            prompt = _prompt_of(row.value)
            lacking.discard(prompt.domain or "")
            yield (index, row.place, prompt.id), prompt
            index += 1


def _told(unreadable: list[RowProblem]) -> CheckProgress:
    """Return the rows that could not be read since the last progress."""
    progress = CheckProgress(len(unreadable), tuple(unreadable))
    unreadable.clear()
    return progress


def _broken_limit(limits: PromptLimits, prompt: Prompt) -> str | None:
    try:
        limits.check_messages(prompt.messages)
    except Invalid as error:
        return str(error)
    return None


def _prompt_of(value: Prompt | Preference) -> Prompt:
    return value.prompt if isinstance(value, Preference) else value
