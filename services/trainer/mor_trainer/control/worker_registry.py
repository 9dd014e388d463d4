"""Registry of the training processes that call run control."""

from __future__ import annotations

import time

from mor_core.run_status import WorkerStatus
from mor_core.runs import ClaimRequest

_FORGOTTEN_S = 600.0
"""Seconds of silence after which a process is listed no longer; a person may look for one that has just gone."""
_MOST = 256
"""Most entries, so that processes with random names cannot fill the memory."""


class WorkerRegistry:
    """Registry in memory: after a restart of run control, a live process calls again within seconds."""

    def __init__(self, lease_s: float) -> None:
        """``lease_s``: seconds of silence after which a process is gone; it calls every few seconds."""
        self._lease_s = lease_s
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
        now = time.monotonic()
        called = [(worker, now - self._called_at[name]) for name, worker in sorted(self._seen.items())]
        return [self._shown(worker, silent_s) for worker, silent_s in called if silent_s < _FORGOTTEN_S]

    def _shown(self, worker: WorkerStatus, silent_s: float) -> WorkerStatus:
        """Return a process with its state; one that is gone holds no run."""
        if silent_s > self._lease_s:
            return worker.model_copy(update={"state": "gone", "run": None})
        return worker.model_copy(update={"state": "waiting" if worker.run is None else "training"})
