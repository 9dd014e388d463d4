"""What training processes ask: the next run, and to keep it."""

from __future__ import annotations

from fastapi import APIRouter, Response
from mor_core.runs import Claim, Heartbeat, HeartbeatReply
from mor_core.wire import Wire

from mor_trainer.dependencies import Runs, Service, Watching

router = APIRouter(prefix="/v1/runs", tags=["workers"])


class ClaimRequest(Wire):
    worker: str
    """Name of the process, for logs."""


@router.post("/claim", summary="Take the oldest queued run", responses={204: {"description": "No run is queued."}})
async def claim(request: ClaimRequest, runs: Runs, watchers: Watching, _: Service, response: Response) -> Claim | None:
    taken = runs.claim(request.worker)
    if taken is None:
        response.status_code = 204
        return None
    watchers.wake(taken.run)
    return taken


@router.post("/{run}/heartbeat", summary="Keep a run, report its state, hear what is wanted")
async def heartbeat(run: str, beat: Heartbeat, runs: Runs, watchers: Watching, _: Service) -> HeartbeatReply:
    before = runs.revision(run)
    reply = runs.beat(run, beat)
    if runs.revision(run) != before:
        watchers.wake(run)
    return reply
