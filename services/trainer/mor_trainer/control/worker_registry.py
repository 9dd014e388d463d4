"""Registry of the training processes that call run control."""

from __future__ import annotations

import time

from mor_core.run_status import WorkerStatus
from mor_core.runs import ClaimRequest

_FORGOTTEN_S = 600.0
"""A process calls every few seconds; after ten minutes of silence it is gone."""
_MOST = 256
"""Most entries, so that processes with random names cannot fill the memory."""


class WorkerRegistry:
    """Registry in memory: after a restart of run control, a live process calls again within seconds."""

    def __init__(self) -> None:
        self._seen: dict[str, WorkerStatus] = {}
        self._called_at: dict[str, float] = {}
        """Process -> monotonic time of its last call."""

    def claimed(self, request: ClaimRequest, run: str | None) -> None:
        """Record that a process requested a run and received ``run``, or none."""
        self._note(
            WorkerStatus(
                name=request.worker, version=request.version, device=request.device, seen_at=time.time(), run=run
            )
        )

    def beat(self, name: str, run: str | None) -> None:
        """Record a heartbeat of a process; ``run`` is null once it holds no run any more."""
        unknown = WorkerStatus(name=name, version=None, device=None, seen_at=0.0, run=None)
        known = self._seen.get(name, unknown)
        self._note(known.model_copy(update={"seen_at": time.time(), "run": run}))

    def _note(self, worker: WorkerStatus) -> None:
        self._seen.pop(worker.name, None)
        self._seen[worker.name] = worker
        self._called_at[worker.name] = time.monotonic()
        while len(self._seen) > _MOST:
            oldest = next(iter(self._seen))
            del self._seen[oldest], self._called_at[oldest]

    def list(self) -> list[WorkerStatus]:
        """List the processes that called within the last ten minutes, by name."""
        since = time.monotonic() - _FORGOTTEN_S
        called = (worker for name, worker in self._seen.items() if self._called_at[name] > since)
        return sorted(called, key=lambda worker: worker.name)
