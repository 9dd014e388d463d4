"""Calls of run control about runs, dead letters and alerts."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mor_core.preflight_status import BadPrompts
from mor_core.run_alerts import Alert
from mor_core.run_change import RunChange
from mor_core.run_status import (
    ClientHistory,
    DeadGroup,
    DeadGroupRecord,
    Event,
    MetricsHistory,
    RunCheckpoints,
    RunClients,
    SampleGroups,
    WorkerStatus,
)
from mor_core.run_storage import ExportRequest, Freed, ModelExport, ModelPush, PushRequest, StorageReport
from mor_core.runs import RunSnapshot, RunSpec

from mor_client.errors import ServiceError
from mor_client.given_arguments import arguments, listed, record
from mor_client.model_download import fetch_model
from mor_client.model_push import push_model
from mor_client.transport import Transport

_RECONNECTS = 8
"""Failed connections in a row after which a stream of events ends: about ten seconds, a restart of run control."""
_MEASURE_S = 120.0
"""Seconds to wait for a deletion: run control walks over the run's files first."""
_PAUSE_S = 1.0
"""Mean pause before a new connection, in seconds; jittered, so that watchers do not return at once."""


class RunCalls:
    """Calls about the runs of a run control."""

    def __init__(self, control: Transport) -> None:
        self._control = control

    def create(self, spec: RunSpec | Mapping[str, Any]) -> RunSnapshot:
        """Queue a run for a training process, which checks all prompts before the first step.

        A lost answer is asked for again and makes no second run.
        """
        body = record("spec", spec, RunSpec).model_dump(mode="json")
        key = {"Idempotency-Key": uuid.uuid4().hex}
        return self._run("POST", "/v1/runs", json=body, headers=key, idempotent=True)

    def workers(self) -> list[WorkerStatus]:
        """List training processes that requested a run within the last ten minutes."""
        found: list[WorkerStatus] = self._control.get("/v1/workers", list[WorkerStatus])
        return found

    def list(self, *, archived: bool = False) -> list[RunSnapshot]:
        """List the runs that are not archived, or those that are, newest first."""
        found: list[RunSnapshot] = self._control.pages("/v1/runs", RunSnapshot, "id", archived=archived or None)
        return found

    def get(self, run: str) -> RunSnapshot:
        return self._run("GET", f"/v1/runs/{run}")

    def spec(self, run: str) -> RunSpec:
        found: RunSpec = self._control.get(f"/v1/runs/{run}/spec", RunSpec)
        return found

    def metrics(self, run: str, *, since_step: int = 0, max_points: int = 1000) -> MetricsHistory:
        found: MetricsHistory = self._control.get(
            f"/v1/runs/{run}/metrics", MetricsHistory, since_step=since_step, max_points=max_points
        )
        return found

    def metrics_csv(self, run: str) -> Iterator[bytes]:
        """Yield the parts of a CSV file with every step and every evaluation."""
        yield from self._control.parts(f"/v1/runs/{run}/metrics.csv")

    def samples(self, run: str, limit: int = 20, *, prompt: str | None = None) -> SampleGroups:
        """List the newest sample groups; with ``prompt``, those of the prompt with this id."""
        path = f"/v1/runs/{run}/samples"
        found: SampleGroups = self._control.get(path, SampleGroups, limit=limit, prompt=prompt)
        return found

    def clients(self, run: str) -> RunClients:
        found: RunClients = self._control.get(f"/v1/runs/{run}/clients", RunClients)
        return found

    def client(self, run: str, name: str, *, since_step: int = 0, max_points: int = 1000) -> ClientHistory:
        found: ClientHistory = self._control.get(
            f"/v1/runs/{run}/clients/{name}", ClientHistory, since_step=since_step, max_points=max_points
        )
        return found

    def checkpoints(self, run: str) -> RunCheckpoints:
        found: RunCheckpoints = self._control.get(f"/v1/runs/{run}/checkpoints", RunCheckpoints)
        return found

    def bad_prompts(self, run: str, limit: int = 1000) -> BadPrompts:
        """List the prompts that the check before the first step found bad."""
        found: BadPrompts = self._control.get(f"/v1/runs/{run}/bad-prompts", BadPrompts, limit=limit)
        return found

    def change(
        self, run: str, *, add_tags: Sequence[str] = (), remove_tags: Sequence[str] = (), note: str | None = None
    ) -> RunSnapshot:
        """Add and remove tags, and set the note; an empty note removes it, ``None`` leaves it as it is."""
        change = arguments(
            RunChange,
            add_tags=listed("add_tags", add_tags, "texts"),
            remove_tags=listed("remove_tags", remove_tags, "texts"),
            note=note,
        )
        return self._run("PATCH", f"/v1/runs/{run}", json=change.model_dump(mode="json"), idempotent=True)

    def pause(self, run: str) -> RunSnapshot:
        """Pause a run at the end of its step."""
        return self._run("POST", f"/v1/runs/{run}/pause", idempotent=True)

    def resume(self, run: str) -> RunSnapshot:
        """Resume a run after a pause, a stop or a failure."""
        return self._run("POST", f"/v1/runs/{run}/resume", idempotent=True)

    def stop(self, run: str) -> RunSnapshot:
        """Stop a run at the end of its step, with a checkpoint."""
        return self._run("POST", f"/v1/runs/{run}/stop", idempotent=True)

    def archive(self, run: str) -> RunSnapshot:
        """Leave a run that is over out of the lists."""
        return self._run("POST", f"/v1/runs/{run}/archive", idempotent=True)

    def unarchive(self, run: str) -> RunSnapshot:
        """Bring an archived run back into the lists."""
        return self._run("POST", f"/v1/runs/{run}/unarchive", idempotent=True)

    def storage(self) -> StorageReport:
        """Get the sizes of the files of all runs, and the limits of what ended runs keep."""
        found: StorageReport = self._control.get("/v1/storage", StorageReport)
        return found

    def delete(self, run: str, *, dry_run: bool = False) -> Freed:
        """Delete a run that is over with its files and history, and return what is freed."""
        found: Freed = self._control.call(
            "DELETE", f"/v1/runs/{run}", Freed, params={"dry_run": dry_run or None}, timeout_s=_MEASURE_S
        )
        return found

    def prune(self, run: str, *, keep_checkpoints: int = 0, dry_run: bool = False) -> Freed:
        """Delete the checkpoints, weights versions and exports of a run that is over, and return what is freed."""
        found: Freed = self._control.call(
            "POST",
            f"/v1/runs/{run}/prune",
            Freed,
            json={"keep_checkpoints": keep_checkpoints, "dry_run": dry_run},
            timeout_s=_MEASURE_S,
        )
        return found

    def export(
        self, run: str, folder: Path, request: ExportRequest, told: Callable[[str], object] = len
    ) -> ModelExport:
        """Write the model of an ended run to the new folder ``folder``. Calls ``told`` with progress.

        A download that was cut off continues at the next call.

        Raises:
            Invalid: ``folder`` exists.
            ServiceError: the run has no such model, or it could not be exported.
        """
        return fetch_model(self._control, run, folder, request, told)

    def push(
        self, run: str, request: ExportRequest, push: PushRequest, told: Callable[[str], object] = len
    ) -> ModelPush:
        """Ask run control to push the model of an ended run, and wait until it is there. Calls ``told`` with progress.

        Raises:
            ServiceError: the run has no such model, run control may not push there, or the push failed.
        """
        return push_model(self._control, run, request, push, told)

    def _run(self, method: str, path: str, **request: Any) -> RunSnapshot:
        found: RunSnapshot = self._control.call(method, path, RunSnapshot, **request)
        return found

    def events(self, run: str, after: str | None = None) -> Iterator[Event]:
        """Yield events without end, from now on or after the cursor ``after``.

        A lost connection is replaced and continues after the last event.

        Raises:
            ServiceError: the service refused, or eight connections in a row failed.
        """
        failures, cursor = 0, after
        while True:
            try:
                with self._control.events(f"/v1/runs/{run}/events", cursor) as source:
                    for sent in source.iter_sse():
                        failures, cursor = 0, sent.id or cursor
                        if sent.data:  # a heartbeat has none
                            yield Event.model_validate_json(sent.data, extra="ignore")
            except ServiceError as error:
                failures += 1
                if not error.lost or failures == _RECONNECTS:
                    raise
            time.sleep(random.uniform(0.5, 1.5) * _PAUSE_S)

    def watch(self, run: str) -> Iterator[RunSnapshot]:
        """Yield the run now and after every step and change of state, until it is finished, failed or stopped."""
        snapshot = self.get(run)
        yield snapshot
        if snapshot.state.over:
            return
        for event in self.events(run, snapshot.cursor):
            if event.kind not in ("step", "state", "preflight", "gap"):
                continue
            latest = self.get(run)
            if latest != snapshot:
                snapshot = latest
                yield snapshot
            if snapshot.state.over:
                return


class DeadLetterCalls:
    """Calls about the dead letters of a run: groups that were given up after all attempts."""

    def __init__(self, control: Transport) -> None:
        self._control = control

    def list(self, run: str, limit: int = 100) -> list[DeadGroup]:
        """List dead letters, newest first."""
        found: list[DeadGroup] = self._control.get(f"/v1/runs/{run}/dead", list[DeadGroup], limit=limit)
        return found

    def get(self, run: str, letter: int) -> DeadGroupRecord:
        """Get a dead letter with its record."""
        found: DeadGroupRecord = self._control.get(f"/v1/runs/{run}/dead/{letter}", DeadGroupRecord)
        return found

    def replay(self, run: str, letter: int) -> DeadGroup:
        """Have the training process issue the group again at its next step."""
        path = f"/v1/runs/{run}/dead/{letter}/replay"
        found: DeadGroup = self._control.call("POST", path, DeadGroup, idempotent=True)
        return found


class AlertCalls:
    """Calls about alerts."""

    def __init__(self, control: Transport) -> None:
        self._control = control

    def list(self, run: str | None = None, *, acknowledged: bool | None = None, limit: int = 100) -> list[Alert]:
        """List alerts of one run or of all, newest first."""
        found: list[Alert] = self._control.get(
            "/v1/alerts", list[Alert], run=run, acknowledged=acknowledged, limit=limit
        )
        return found

    def acknowledge(self, alert: int, note: str | None = None) -> Alert:
        """Mark an alert as being handled; the next occurrence is a new alert."""
        found: Alert = self._control.call(
            "POST", f"/v1/alerts/{alert}/acknowledge", Alert, json={"note": note}, idempotent=True
        )
        return found
