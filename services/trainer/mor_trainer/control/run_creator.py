"""Creation of runs: the checks before a run is queued, once for each request however often it is sent."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path

import structlog
from mor_core.datafiles import read_prompts
from mor_core.errors import Conflict, Unavailable
from mor_core.runs import RunSpec
from mor_core.tasks import in_thread, stop

from mor_trainer.control.checkpoint_check import check_folder
from mor_trainer.control.ingest import Watchers
from mor_trainer.control.run_store import RunStore
from mor_trainer.groups.source_prompts import read_source_prompts

_MOST_CHECKS = 4
"""Creations in progress at a time; each reads a whole prompts file."""
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
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End the creations in progress; whoever repeats a request begins again."""
        await stop([task for _, task in self._checking.values()])

    async def _check_and_queue(self, spec: RunSpec, by: str, creation: str | None) -> str:
        if self._checks.locked():
            raise Unavailable(f"{_MOST_CHECKS} runs are being created, each reads its prompts; try again", _RETRY_S)
        async with self._checks:
            await in_thread(_check, spec)
        run = self._runs.create(spec, creation)
        audit.info("run created", run=run, by=by)
        self._watchers.wake(run)
        return run


def _check(spec: RunSpec) -> None:
    """Check everything that can be checked before a worker starts."""
    check_folder(spec.model)
    read_source_prompts(spec)
    if spec.evaluation_prompts:
        read_prompts(Path(spec.evaluation_prompts), spec.prompt_columns)
