"""The training processes that ask run control, as they last did."""

from __future__ import annotations

import time

from mor_core.run_status import WorkerStatus
from mor_core.runs import ClaimRequest

_FORGOTTEN_S = 600.0
_MOST = 256


class WorkerRegistry:
    """In memory: a process that lives asks again within seconds."""

    def __init__(self) -> None:
        self._seen: dict[str, WorkerStatus] = {}

    def asked(self, request: ClaimRequest, run: str | None) -> None:
        """A process asked for a run, and got ``run``."""
        self._note(
            WorkerStatus(
                name=request.worker, version=request.version, device=request.device, seen_at=time.time(), run=run
            )
        )

    def beat(self, name: str, run: str | None) -> None:
        """A process told of its run; it has none any more when ``run`` is null."""
        unknown = WorkerStatus(name=name, version=None, device=None, seen_at=0.0, run=None)
        known = self._seen.get(name, unknown)
        self._note(known.model_copy(update={"seen_at": time.time(), "run": run}))

    def _note(self, worker: WorkerStatus) -> None:
        self._seen.pop(worker.name, None)
        self._seen[worker.name] = worker
        while len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]

    def list(self) -> list[WorkerStatus]:
        """Those of the last ten minutes, by name."""
        since = time.time() - _FORGOTTEN_S
        return sorted((worker for worker in self._seen.values() if worker.seen_at > since), key=lambda w: w.name)
