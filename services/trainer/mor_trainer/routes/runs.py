"""Routes that create, list, pause, resume and stop runs."""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Annotated

import structlog
from fastapi import APIRouter, Header, Query, Response
from mor_core.errors import Conflict
from mor_core.json_route import JsonRoute
from mor_core.openapi import problems
from mor_core.paging import MOST_ENTRIES, After, PageLimit, page
from mor_core.run_change import RunChange
from mor_core.runs import Desired, RunSnapshot, RunSpec
from pydantic import RootModel

from mor_trainer.control import redaction
from mor_trainer.routes.dependencies import (
    Admin,
    ReaderOrClient,
    RunChangesDep,
    RunCreatorDep,
    RunStoreDep,
    SettingsDep,
    WatchersDep,
)
from mor_trainer.routes.etag import IfNoneMatch, conditional_response, conditional_responses
from mor_trainer.run_files import files_are_deleted, folder_of

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=JsonRoute)

_STARTED = secrets.token_hex(4)
"""Distinguishes the generations of this process from those of another in an ETag."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=128,
        pattern=r"^[!-~]+$",
        description="Name of this request, such as a UUID; repeated with it, the request returns the same run.",
    ),
]

audit = structlog.get_logger("audit")


@router.post("", status_code=202, summary="Create a run", responses=problems(409))
async def create(
    *,
    spec: RunSpec,
    runs: RunStoreDep,
    creator: RunCreatorDep,
    caller: Admin,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> RunSnapshot:
    """Check that the specification's files are there and begin as they should, and queue the run for a worker.

    The worker checks all prompts before the first step; ``preflight`` of the run shows it. A request that is repeated
    with its key creates no second run: it waits for the first request and returns its run.
    """
    run = await creator.create(spec, caller.name, idempotency_key)
    response.headers["Location"] = f"/v1/runs/{run}"
    return runs.snapshot(run)


class _Runs(RootModel[list[RunSnapshot]]):
    """Snapshots of all runs."""


@router.get("", summary="Runs, newest first", response_class=Response, responses=conditional_responses(_Runs))
async def list_runs(
    *,
    runs: RunStoreDep,
    caller: ReaderOrClient,
    after: After = None,
    limit: PageLimit = MOST_ENTRIES,
    archived: Annotated[bool, Query(description="The archived runs instead of the others.")] = False,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """List runs that are not archived. A client's token shows progress and that client's own figures."""
    shown = sha256(f"{after} {limit} {archived}".encode()).hexdigest()[:8]
    return await conditional_response(
        f'"{_STARTED}.{runs.generation}.{shown}.{redaction.view(caller)}"',
        if_none_match,
        caller,
        lambda: _Runs(runs.readable(page(runs.ids(archived=archived), str, after, limit))),
    )


@router.patch("/{run}", summary="Change tags and note of a run", responses=problems(409))
async def change(
    run: str,
    request: RunChange,
    *,
    runs: RunStoreDep,
    changes: RunChangesDep,
    watchers: WatchersDep,
    caller: Admin,
) -> RunSnapshot:
    """Add and remove tags, and set the note, in any state of the run. Changes of two people at once are both kept."""
    changes.apply(run, request)
    audit.info("run changed", run=run, by=caller.name)
    watchers.wake(run)
    return runs.snapshot(run)


def _request(run: str, desired: Desired, runs: RunStoreDep, watchers: WatchersDep, caller: Admin) -> RunSnapshot:
    runs.request(run, desired)
    audit.info("run control", run=run, desired=desired, by=caller.name)
    watchers.wake(run)
    return runs.snapshot(run)


@router.post("/{run}/pause", status_code=202, summary="Pause after the current step", responses=problems(409))
async def pause(run: str, runs: RunStoreDep, watchers: WatchersDep, caller: Admin) -> RunSnapshot:
    return _request(run, "pause", runs, watchers, caller)


@router.post(
    "/{run}/resume",
    status_code=202,
    summary="Continue after a pause, a stop or a failure",
    responses=problems(409),
)
async def resume(
    run: str, runs: RunStoreDep, settings: SettingsDep, watchers: WatchersDep, caller: Admin
) -> RunSnapshot:
    runs.revision(run)  # an unknown run names no folder
    if files_are_deleted(folder_of(settings.runs_dir, run)):
        raise Conflict(
            f"the checkpoints of run {run} were deleted after its end, by 'mor run prune' or by age, number or size "
            "(MOR_ENDED_RUN_DAYS, MOR_ENDED_RUNS_KEPT, MOR_ENDED_RUNS_BYTES, MOR_ENDED_RUNS_SHARE); create a new run"
        )
    return _request(run, "run", runs, watchers, caller)


@router.post("/{run}/stop", status_code=202, summary="Write a checkpoint and stop", responses=problems(409))
async def stop(run: str, runs: RunStoreDep, watchers: WatchersDep, caller: Admin) -> RunSnapshot:
    return _request(run, "stop", runs, watchers, caller)
