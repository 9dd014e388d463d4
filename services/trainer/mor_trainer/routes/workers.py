"""Routes of training processes and rollout services: claim a run, renew its lease, report limits; and their lists."""

from __future__ import annotations

from fastapi import APIRouter, Response
from mor_core.json_route import JsonRoute
from mor_core.openapi import problems
from mor_core.run_status import EngineLimits, WorkerStatus
from mor_core.runs import Claim, ClaimRequest, Heartbeat, HeartbeatReply, RunState

from mor_trainer.routes.dependencies import (
    EnginesDep,
    Reader,
    RunExportsDep,
    RunStoreDep,
    Service,
    WatchersDep,
    WorkersDep,
)

router = APIRouter(prefix="/v1", tags=["workers"], route_class=JsonRoute)


@router.post(
    "/runs/claim", summary="Claim the oldest queued run", responses={204: {"description": "No run is queued."}}
)
async def claim(
    request: ClaimRequest,
    *,
    runs: RunStoreDep,
    watchers: WatchersDep,
    registry: WorkersDep,
    _: Service,
    response: Response,
) -> Claim | None:
    taken = runs.claim(request.worker)
    registry.claimed(request, taken.run if taken else None)
    if taken is None:
        response.status_code = 204
        return None
    watchers.wake(taken.run)
    return taken


@router.post(
    "/runs/{run}/heartbeat",
    summary="Renew the lease of a run, report its state, get the desired state",
    responses=problems(409),
)
async def heartbeat(
    run: str,
    beat: Heartbeat,
    *,
    runs: RunStoreDep,
    exports: RunExportsDep,
    watchers: WatchersDep,
    registry: WorkersDep,
    _: Service,
) -> HeartbeatReply:
    before, worker = runs.revision(run), runs.worker(run)
    reply = runs.beat(run, beat)
    if worker is not None:
        registry.beat(worker, runs.worker(run) and run)
    if beat.state is RunState.finished:
        await exports.add_card(run)
    if runs.revision(run) != before:
        watchers.wake(run)
    return reply


@router.get("/workers", summary="Training processes of the last ten minutes, and whether they are gone")
async def workers(registry: WorkersDep, _: Reader) -> list[WorkerStatus]:
    return registry.list()


@router.post("/engines", status_code=204, summary="Report the limits of a rollout service")
async def report_engine(limits: EngineLimits, registry: EnginesDep, _: Service) -> None:
    registry.report(limits)


@router.get("/engines", summary="Limits of the rollout services that reported within the last ten minutes")
async def engines(registry: EnginesDep, _: Reader) -> list[EngineLimits]:
    return registry.list()
