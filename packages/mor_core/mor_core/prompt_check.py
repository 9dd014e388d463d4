"""Check of a data set before a run: every row is read, and every prompt is encoded as engine and trainer will.

Rows are encoded by several processes, in batches, of which few are under way at a time; so the memory of a check does
not depend on the size of the data.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from mor_core import images, vision
from mor_core.datafiles import ParsedRow, Preference, Prompt, scan_preferences, scan_prompts
from mor_core.datafiles.sources.row_files import RowPlace
from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure
from mor_core.image_budget import ImageBudget
from mor_core.model_family import check_family
from mor_core.prompt_limits import PromptLimits

_BATCH = 16
"""Rows that a process encodes before it reports."""
_BATCHES_A_PROCESS = 3
"""Batches under way for each process: one in work, and others that wait for it."""
_ROWS_FIRST, _BYTES_FIRST = 1024, 64 << 20
"""Rows, or bytes of their pictures, that are read before the model's processor is loaded."""
_ROW_S = 60.0
"""Longest encoding of a row, seconds: far more than any picture within the limits needs."""
_PICTURE_BYTES = 64 << 20
"""Bytes of the pictures of a row, as the rollout service takes them by default."""

Batch = Sequence[tuple[RowPlace, Prompt]]


@dataclass(frozen=True)
class RowProblem:
    """Row that no run can use."""

    file: str
    line: int
    """Line, row or sample in the file, from 1."""
    id: str
    """Empty where the row is too broken to have one."""
    problem: str


@dataclass(frozen=True)
class CheckProgress:
    """Progress of a check: rows that are done, and those of them that are bad."""

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
    processes: int = 1

    def run(self) -> Iterator[CheckProgress]:
        """Yield what is found as it is found, to the end of the data.

        Raises:
            Invalid: there is no such data set, or the model has no processor that can be used.
            Unavailable: a process ended before its work.
        """
        seen = 0
        try:
            for part in self._read() if self.model is None else self._encoded(self.model):
                seen += part.rows
                yield part
        except BrokenProcessPool as error:
            raise Unavailable(
                "a process that encoded rows ended, perhaps out of memory; use fewer processes"
            ) from error
        if not seen:
            raise Invalid(f"{self.data}: no row that gives prompts; write one JSON object per line")

    def _scanned(self) -> Iterator[ParsedRow[Any]]:
        return (scan_preferences if self.preferences else scan_prompts)(self.data, self.columns)

    def _read(self) -> Iterator[CheckProgress]:
        for row in self._scanned():
            problem = row.problem
            if row.value is not None:
                problem = _broken_limit(self.limits, _prompt_of(row.value))
            yield CheckProgress(1, () if problem is None else (_bad(row.place, row.name, problem),))

    def _encoded(self, model: str) -> Iterator[CheckProgress]:
        """Read rows and encode them, with a bounded number of batches under way.

        A model takes seconds to load, so the first rows are read before that: a mistake in all rows is told at once.
        """
        first: list[Batch] = []
        batches = self._batches()
        for part in batches:
            if isinstance(part, CheckProgress):
                yield part
                continue
            first.append(part)
            if len(first) * _BATCH >= _ROWS_FIRST or sum(map(_picture_bytes, first)) > _BYTES_FIRST:
                break
        if not first:
            return
        check_family(model)  # here first, so that a model that cannot be used is refused by name
        under_way: set[Future[CheckProgress]] = set()
        with self._pool() as pool:
            for part in chain(first, batches):
                if isinstance(part, CheckProgress):
                    yield part
                    continue
                under_way.add(pool.submit(_encode, model, self.limits, part))
                if len(under_way) >= _BATCHES_A_PROCESS * self.processes:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in as_completed(under_way))

    def _batches(self) -> Iterator[CheckProgress | Batch]:
        """Yield rows that can be read in batches, and each other one as it is met."""
        batch: list[tuple[RowPlace, Prompt]] = []
        for row in self._scanned():
            if row.value is None:
                yield CheckProgress(1, (_bad(row.place, row.name, row.problem or ""),))
                continue
            batch.append((row.place, _prompt_of(row.value)))
            if len(batch) == _BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    @contextlib.contextmanager
    def _pool(self) -> Iterator[ProcessPoolExecutor]:
        pool = ProcessPoolExecutor(self.processes, mp_context=multiprocessing.get_context("spawn"))
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


_processor = functools.cache(vision.load_processor)


def _encode(model: str, limits: PromptLimits, rows: Batch) -> CheckProgress:
    """Encode a batch in a process of the pool."""
    processor = _processor(model)
    signal.signal(signal.SIGALRM, _too_slow)
    bad = []
    for place, prompt in rows:
        signal.setitimer(signal.ITIMER_REAL, _ROW_S)
        try:
            limits.check_messages(prompt.messages)
            budget = ImageBudget(_PICTURE_BYTES)
            for content in prompt.images.values():
                budget.spend(content)
            decoded = {digest: images.decode(content) for digest, content in prompt.images.items()}
            limits.check_tokens(vision.encode_prompt(processor, prompt.messages, decoded)["input_ids"].shape[1])
        except Exception as error:  # whatever fails, it is this row that no run can use
            bad.append(_bad(place, prompt.id, describe_failure(error)))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return CheckProgress(len(rows), tuple(bad))


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"not encoded within {_ROW_S:g} s")


def _broken_limit(limits: PromptLimits, prompt: Prompt) -> str | None:
    try:
        limits.check_messages(prompt.messages)
    except Invalid as error:
        return str(error)
    return None


def _picture_bytes(rows: Batch) -> int:
    return sum(len(content) for _, prompt in rows for content in prompt.images.values())


def _prompt_of(value: Prompt | Preference) -> Prompt:
    return value.prompt if isinstance(value, Preference) else value


def _bad(place: RowPlace, name: str, problem: str) -> RowProblem:
    return RowProblem(str(place.file), place.line, name, problem)
