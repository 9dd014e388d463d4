"""Routes that create, list, pause, resume and stop runs."""

from __future__ import annotations

import secrets
from hashlib import sha256
from pathlib import Path

import structlog
from anyio import to_thread
from fastapi import APIRouter, Response
from mor_core.datafiles import read_prompts
from mor_core.json_route import JsonRoute
from mor_core.openapi import problems
from mor_core.paging import MOST_ENTRIES, After, PageLimit, page
from mor_core.runs import Desired, RunSnapshot, RunSpec
from pydantic import RootModel

from mor_trainer.control import redaction
from mor_trainer.control.checkpoint_check import check_folder
from mor_trainer.routes.dependencies import Admin, ReaderOrClient, RunStoreDep, WatchersDep
from mor_trainer.routes.etag import IfNoneMatch, conditional_response, conditional_responses

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=JsonRoute)

_STARTED = secrets.token_hex(4)
"""Distinguishes the generations of this process from those of another in an ETag."""

audit = structlog.get_logger("audit")


def _check(spec: RunSpec) -> None:
    """Check everything that can be checked before a worker starts."""
    check_folder(spec.model)
    for file in filter(None, (spec.prompts, spec.evaluation_prompts)):
        read_prompts(Path(file), spec.prompt_columns)


@router.post("", status_code=201, summary="Create a run")
async def create(
    spec: RunSpec,
    runs: RunStoreDep,
    watchers: WatchersDep,
    caller: Admin,
    response: Response,
) -> RunSnapshot:
    """Check the files that the specification names, and queue the run for a worker."""
    await to_thread.run_sync(_check, spec)
    run = runs.create(spec)
    audit.info("run created", run=run, by=caller.name)
    response.headers["Location"] = f"/v1/runs/{run}"
    watchers.wake(run)
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
    if_none_match: IfNoneMatch = None,
) -> Response:
    """List runs. A client's token shows progress and that client's own figures."""
    shown = sha256(f"{after} {limit}".encode()).hexdigest()[:8]
    return await conditional_response(
        f'"{_STARTED}.{runs.generation}.{shown}.{redaction.view(caller)}"',
        if_none_match,
        caller,
        lambda: _Runs(runs.readable(page(runs.ids(), str, after, limit))),
    )


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
async def resume(run: str, runs: RunStoreDep, watchers: WatchersDep, caller: Admin) -> RunSnapshot:
    return _request(run, "run", runs, watchers, caller)


@router.post("/{run}/stop", status_code=202, summary="Write a checkpoint and stop", responses=problems(409))
async def stop(run: str, runs: RunStoreDep, watchers: WatchersDep, caller: Admin) -> RunSnapshot:
    return _request(run, "stop", runs, watchers, caller)
