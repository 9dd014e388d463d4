"""Status of a run: snapshot, metrics, samples, clients, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Query, Response
from mor_core.run_status import Checkpoints, ClientHistory, MetricsHistory, RunClients, Samples
from mor_core.runs import RunSnapshot, RunSpec
from pydantic import BaseModel

from mor_trainer.control import visible
from mor_trainer.routes.compressed import CompressedRoute
from mor_trainer.routes.dependencies import Past, Reader, ReaderOrClient, Runs

router = APIRouter(prefix="/v1/runs/{run}", tags=["status"], route_class=CompressedRoute)

REVALIDATE = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}
"""A cache asks each time, and for each caller apart."""
_FOR_EVER = "private, max-age=31536000, immutable"

IfNoneMatch = Annotated[str | None, Header(description="ETag of an earlier answer: 304 while nothing has changed.")]
SinceStep = Annotated[int, Query(ge=0, description="Only steps after this one.")]
MaxPoints = Annotated[int, Query(ge=1, le=10_000, description="Evenly spaced choice of at most this many.")]


def responses(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI tells of a route that revalidates."""
    return {200: {"model": model}, 304: {"description": "Not changed."}}


def matches(header: str | None, etag: str) -> bool:
    """Whether an ``If-None-Match`` header names the entity tag, by weak comparison (RFC 9110, 13.1.2)."""
    if header is None:
        return False
    return header.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in header.split(",")]


async def revalidated(etag: str, if_none_match: str | None, content: Callable[[], BaseModel]) -> Response:
    """304 when the caller has what ``etag`` names, else ``content()`` as JSON, made on another thread."""
    headers = {"ETag": etag, **REVALIDATE}
    if matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    body = await to_thread.run_sync(lambda: content().model_dump_json())
    return Response(body, headers=headers, media_type="application/json")


def _etag(run: str, runs: Runs, caller: ReaderOrClient) -> str:
    who = "" if visible.sees_all(caller) else f".{caller.name}"
    return f'"{run}.{runs.revision(run)}{who}"'


@router.get("", summary="The run as it stands", response_class=Response, responses=responses(RunSnapshot))
async def snapshot(run: str, runs: Runs, caller: ReaderOrClient, if_none_match: IfNoneMatch = None) -> Response:
    """``ETag`` changes with every change of the run; send it back as ``If-None-Match`` and get 304 until then. A
    client's token shows progress and its own figures."""
    return await revalidated(
        _etag(run, runs, caller), if_none_match, lambda: visible.snapshot(runs.snapshot(run), caller)
    )


@router.get("/spec", summary="What the run was created with")
async def spec(run: str, runs: Runs, _: Reader) -> RunSpec:
    return runs.spec(run)


@router.get("/metrics", summary="Metrics by step", response_class=Response, responses=responses(MetricsHistory))
async def metrics(
    run: str,
    *,
    runs: Runs,
    history: Past,
    caller: Reader,
    since_step: SinceStep = 0,
    max_points: MaxPoints = 1000,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """All steps after ``since_step``, or every n-th (``stride``) so that there are at most ``max_points``, and always
    the last one."""
    return await revalidated(
        _etag(run, runs, caller), if_none_match, lambda: history.metrics(run, since_step, max_points)
    )


@router.get("/samples", summary="Newest sample groups", response_class=Response, responses=responses(Samples))
async def samples(
    run: str,
    *,
    runs: Runs,
    history: Past,
    caller: ReaderOrClient,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Prompt, pictures, responses, scores of each client, weights, fused reward and advantage. A client's token shows
    the groups that it scored, with its own scores alone."""
    return await revalidated(
        _etag(run, runs, caller),
        if_none_match,
        lambda: Samples(run=run, samples=tuple(visible.samples(history.samples(run, limit), caller))),
    )


@router.get(
    "/images/{sha256}",
    summary="Thumbnail of a sample's picture",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}},
)
async def image(
    run: str, sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")], history: Past, _: ReaderOrClient
) -> Response:
    """A JPEG of at most 192 x 192 pixels, named by the hash of the whole picture."""
    headers = {"Cache-Control": _FOR_EVER, "X-Content-Type-Options": "nosniff"}
    return Response(history.thumbnail(run, sha256), headers=headers, media_type="image/jpeg")


@router.get("/clients", summary="Clients in the last step", response_class=Response, responses=responses(RunClients))
async def clients(
    run: str, runs: Runs, history: Past, caller: ReaderOrClient, if_none_match: IfNoneMatch = None
) -> Response:
    """Mean reward, mixture weight and failures of each client; empty before the first step. A client's token shows its
    own line."""

    def content() -> RunClients:
        found = history.clients(run)
        if not visible.sees_all(caller):
            found = {name: figures for name, figures in found.items() if name == caller.name}
        return RunClients(run=run, clients=found)

    return await revalidated(_etag(run, runs, caller), if_none_match, content)


@router.get(
    "/clients/{name}", summary="One client over the steps", response_class=Response, responses=responses(ClientHistory)
)
async def client(
    run: str,
    name: str,
    *,
    runs: Runs,
    history: Past,
    caller: ReaderOrClient,
    since_step: SinceStep = 0,
    max_points: MaxPoints = 1000,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Weight, by domain too, mean reward and failures. A client's token shows its own only."""
    visible.check_sees(caller, name)
    return await revalidated(
        _etag(run, runs, caller), if_none_match, lambda: history.client(run, name, since_step, max_points)
    )


@router.get("/checkpoints", summary="Checkpoints, oldest first")
async def checkpoints(run: str, history: Past, _: Reader) -> Checkpoints:
    return Checkpoints(run=run, checkpoints=tuple(history.checkpoints(run)))
