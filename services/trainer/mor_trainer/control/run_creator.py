"""Creation of runs: the checks before a run is queued, once for each request however often it is sent."""

from __future__ import annotations

import asyncio
import time
from hashlib import sha256
from itertools import islice
from pathlib import Path

import structlog
from mor_core.datafiles import ColumnMap, ParsedRow, Prompt, scan_prompts
from mor_core.datafiles.sources.row_files import open_rows
from mor_core.errors import Conflict, DataFileError, Unavailable
from mor_core.runs import RunSpec
from mor_core.tasks import forget_failure, in_thread, stop

from mor_trainer.control.checkpoint_check import check_folder
from mor_trainer.control.ingest import Watchers
from mor_trainer.control.run_store import RunStore

_MOST_CHECKS = 4
"""Creations in progress at a time; each reads the beginning of its files on a thread."""
_FIRST_ROWS = 32
"""Rows of a file of which one must be readable: a file of another kind has none."""
_FIRST_S = 1.0
"""Time to find one, seconds; later the file counts as readable, and the worker reads it."""
_LARGEST_ARRAY = 16 << 20
"""Bytes of a JSON file, which is read as a whole where it is one array."""
_RETRY_S = 5.0
"""Pause before a creation that was turned away is tried again, seconds."""

audit = structlog.get_logger("audit")


class RunCreator:
    """Creator of runs, which outlives the connection of the request that it began with."""

    def __init__(self, runs: RunStore, watchers: Watchers) -> None:
        self._runs = runs
        self._watchers = watchers
        self._checking: dict[str, tuple[RunSpec, asyncio.Task[str]]] = {}
        """Digest of a creation -> what is checked for it."""
        self._checks = asyncio.Semaphore(_MOST_CHECKS)

    async def create(self, spec: RunSpec, by: str, key: str | None) -> str:
        """Check the files of a run, queue it, and return its id.

        ``by``: name of the caller. ``key``: name of the request among those of its caller. A request with a key of
        before gets the run of before.

        Raises:
            Conflict: the key was used for another specification.
            Invalid: a file that the specification names does not fit.
            Unavailable: too many runs are being created.
        """
        creation = None if key is None else sha256(f"{len(by)} {by} {key}".encode()).hexdigest()
        if creation is None:
            return await self._check_and_queue(spec, by, None)
        if creation in self._checking:
            checked, task = self._checking[creation]
            if checked != spec:
                raise Conflict("the Idempotency-Key is in use for another specification; send a new key")
        elif (found := self._runs.created(creation, spec)) is not None:
            return found
        else:
            task = asyncio.create_task(self._check_and_queue(spec, by, creation), name="creation of a run")
            self._checking[creation] = (spec, task)
            task.add_done_callback(lambda _: self._checking.pop(creation, None))
            task.add_done_callback(forget_failure)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End the creations in progress; whoever repeats a request begins again."""
        await stop([task for _, task in self._checking.values()])

    async def _check_and_queue(self, spec: RunSpec, by: str, creation: str | None) -> str:
        if self._checks.locked():
            raise Unavailable(f"{_MOST_CHECKS} runs are being created, the limit; try again", _RETRY_S)
        async with self._checks:
            await in_thread(_check, spec)
        run = self._runs.create(spec, creation)
        audit.info("run created", run=run, by=by)
        self._watchers.wake(run)
        return run


def _check(spec: RunSpec) -> None:
    """Check what can be checked within about a second; the worker checks all prompts before the first step."""
    check_folder(spec.model)
    for file in spec.prompt_files():
        _check_beginning(Path(file.path), file.columns)


def _check_beginning(path: Path, columns: str) -> None:
    """Check that there is such a data set, and that one of its first rows can be read.

    Raises:
        Invalid: there is none, or none of the first rows is one.
    """
    ColumnMap.parse(columns)
    files = open_rows(path).files
    if not all(file.is_file() and (file.suffix != ".json" or file.stat().st_size <= _LARGEST_ARRAY) for file in files):
        return  # a hub's data set, or one that takes long to read
    deadline = time.monotonic() + _FIRST_S
    first: ParsedRow[Prompt] | None = None
    for row in islice(scan_prompts(path, columns), _FIRST_ROWS):
        if row.value is not None or time.monotonic() > deadline:
            return
        first = first or row
    if first is None:
        raise DataFileError(path, 1, "the file has no rows that give prompts; add rows")
    raise DataFileError(first.place.file, first.place.line, f"{first.problem}; none of the first rows can be read")
