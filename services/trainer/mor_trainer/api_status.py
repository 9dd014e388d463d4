"""Status of a run: snapshot, metrics, events, samples, clients, checkpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Response
from mor_core.runs import RunSnapshot, RunSpec
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse

from mor_trainer.dependencies import Configured, Past, Reader, Runs, Watching
from mor_trainer.history import History, cursor, parse_cursor
from mor_trainer.ingest import Watchers

router = APIRouter(prefix="/v1/runs/{run}", tags=["status"])

_REVALIDATE = "private, no-cache"
_LONGEST_SILENCE_S = 5.0


def matches(header: str | None, etag: str) -> bool:
    """Whether an ``If-None-Match`` header names the entity tag."""
    return header is not None and (header.strip() == "*" or etag in [tag.strip() for tag in header.split(",")])


@router.get(
    "",
    summary="The run as it stands",
    response_class=Response,
    responses={200: {"model": RunSnapshot}, 304: {"description": "Not changed."}},
)
async def snapshot(run: str, runs: Runs, _: Reader, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """``ETag`` changes with every change of the run; send it back as ``If-None-Match`` and get 304 until then."""
    headers = {"ETag": f'"{run}.{runs.revision(run)}"', "Cache-Control": _REVALIDATE}
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(runs.snapshot(run).model_dump_json(), headers=headers, media_type="application/json")


@router.get("/spec", summary="What the run was created with")
async def spec(run: str, runs: Runs, _: Reader) -> RunSpec:
    return runs.spec(run)


@router.get("/metrics", summary="Metrics by step")
async def metrics(
    run: str,
    history: Past,
    _: Reader,
    since_step: Annotated[int, Query(ge=0, description="Only steps after this one.")] = 0,
    max_points: Annotated[int, Query(ge=1, le=10_000, description="Evenly spaced choice of at most this many.")] = 1000,
) -> dict[str, Any]:
    points = await to_thread.run_sync(history.metrics, run, since_step, max_points)
    return {"run": run, "points": points, "evaluations": history.evaluations(run)}


@router.get("/samples", summary="Newest sample groups")
async def samples(
    run: str, history: Past, _: Reader, limit: Annotated[int, Query(ge=1, le=200)] = 20
) -> dict[str, Any]:
    """Prompt, responses, scores of each client, weights, fused reward and advantage."""
    return {"run": run, "samples": history.samples(run, limit)}


@router.get("/clients", summary="Clients in the last step")
async def clients(run: str, history: Past, _: Reader) -> dict[str, Any]:
    """Mean reward, mixture weight and failures of each client; empty before the first step."""
    return {"run": run, "clients": history.clients(run)}


@router.get("/checkpoints", summary="Checkpoints, oldest first")
async def checkpoints(run: str, history: Past, _: Reader) -> dict[str, Any]:
    return {"run": run, "checkpoints": history.checkpoints(run)}


@router.get("/events", summary="Events as they happen (SSE)", response_class=EventSourceResponse)
async def events(
    run: str,
    *,
    runs: Runs,
    history: Past,
    watchers: Watching,
    settings: Configured,
    _: Reader,
    last_event_id: Annotated[str | None, Header(description="Go on after this event.")] = None,
) -> EventSourceResponse:
    """Each event's ``id`` is the cursor; without ``Last-Event-ID`` the stream starts from now."""
    runs.revision(run)
    after = history.last_event(run) if last_event_id is None else parse_cursor(run, last_event_id)
    return EventSourceResponse(
        _follow(run, after, history, watchers), ping=max(1, round(settings.sse_heartbeat_s)), send_timeout=30.0
    )


async def _follow(run: str, after: int, history: History, watchers: Watchers) -> AsyncIterator[ServerSentEvent]:
    while True:
        found = history.events(run, after)
        for event in found:
            after = event.id
            yield ServerSentEvent(data=event.model_dump_json(), event=event.kind, id=cursor(run, event.id))
        if not found:
            await watchers.wait(run, _LONGEST_SILENCE_S)
