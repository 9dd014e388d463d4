"""Routes of a run's status: snapshot, metrics, samples, clients, checkpoints."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Response
from mor_core.auth import Scope
from mor_core.errors import NotFound
from mor_core.preflight_status import BadPrompts
from mor_core.run_status import ClientHistory, MetricsHistory, RunCheckpoints, RunClients, SampleGroups
from mor_core.runs import RunSnapshot, RunSpec

from mor_trainer.control import redaction
from mor_trainer.control.kept_checkpoints import kept_checkpoints
from mor_trainer.prompts.stored_checks import MOST_LISTED_OF_RUN, read_run_checks
from mor_trainer.routes.compressed import CompressedRoute
from mor_trainer.routes.dependencies import (
    LARGEST_NUMBER,
    HistoryDep,
    Reader,
    ReaderOrClient,
    ReaderOrOwner,
    RunStoreDep,
    SettingsDep,
)
from mor_trainer.routes.etag import IfNoneMatch, PolledRoute, conditional_response, conditional_responses, etag_of
from mor_trainer.run_files import folder_of

router = APIRouter(prefix="/v1/runs/{run}", tags=["status"], route_class=CompressedRoute)
polled = APIRouter(prefix="/v1/runs/{run}", tags=["status"], route_class=PolledRoute)

SinceStep = Annotated[int, Query(ge=0, le=LARGEST_NUMBER, description="Only steps after this one.")]
MaxPoints = Annotated[int, Query(ge=1, le=10_000, description="Evenly spaced choice of at most this many steps.")]


@polled.get(
    "", summary="Current state of the run", response_class=Response, responses=conditional_responses(RunSnapshot)
)
async def snapshot(run: str, runs: RunStoreDep, caller: ReaderOrClient, if_none_match: IfNoneMatch = None) -> Response:
    """Return the state of a run. ``ETag`` changes with every change; send it back as ``If-None-Match`` to get 304 until
    then. A client's token shows progress and that client's own figures."""
    return await conditional_response(etag_of(run, runs, caller), if_none_match, caller, lambda: runs.snapshot(run))


@router.get("/spec", summary="Specification of the run")
async def spec(run: str, runs: RunStoreDep, _: Reader) -> RunSpec:
    return runs.spec(run)


@router.get(
    "/metrics", summary="Metrics by step", response_class=Response, responses=conditional_responses(MetricsHistory)
)
async def metrics(
    run: str,
    *,
    runs: RunStoreDep,
    history: HistoryDep,
    caller: Reader,
    since_step: SinceStep = 0,
    max_points: MaxPoints = 1000,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return the metrics of all steps after ``since_step``, or of every n-th (``stride``) so that there are at most
    ``max_points``, and always of the last one."""
    return await conditional_response(
        etag_of(run, runs, caller), if_none_match, caller, lambda: history.metrics(run, since_step, max_points)
    )


@router.get(
    "/samples", summary="Newest sample groups", response_class=Response, responses=conditional_responses(SampleGroups)
)
async def samples(
    run: str,
    *,
    runs: RunStoreDep,
    history: HistoryDep,
    caller: ReaderOrClient,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
    prompt: Annotated[str | None, Query(max_length=1000, description="Only groups of the prompt with this id.")] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """List sample groups: prompt, pictures, responses, scores of each client, weights, fused reward and advantage. A
    client's token shows the groups that were sent to the client, with its own scores alone."""
    return await conditional_response(
        etag_of(run, runs, caller),
        if_none_match,
        caller,
        lambda: SampleGroups(
            run=run, samples=tuple(redaction.samples(history.samples.list(run, limit, prompt=prompt), caller))
        ),
    )


@router.get(
    "/images/{sha256}",
    summary="Thumbnail of a sample's picture",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}},
)
async def image(
    run: str,
    sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")],
    *,
    history: HistoryDep,
    settings: SettingsDep,
    caller: ReaderOrClient,
) -> Response:
    """Return a JPEG of at most 192 x 192 pixels, named by the hash of the whole picture. A client's token shows the
    pictures of the sample groups that were sent to the client."""

    def read() -> bytes:
        if caller.scope is Scope.client:
            found = history.samples.list(run, settings.samples_kept, picture=sha256)
            if not any(sha256 in sample.images for sample in redaction.samples(found, caller)):
                raise NotFound(f"no kept sample of run {run} has a picture {sha256[:12]}; /samples lists them")
        return history.samples.thumbnail(run, sha256)

    return Response(await to_thread.run_sync(read), media_type="image/jpeg")


@router.get(
    "/clients", summary="Clients in the last step", response_class=Response, responses=conditional_responses(RunClients)
)
async def clients(
    run: str, runs: RunStoreDep, history: HistoryDep, caller: ReaderOrClient, if_none_match: IfNoneMatch = None
) -> Response:
    """List mean reward, mixture weight and failures of each client; empty before the first step. A client's token shows
    that client."""
    return await conditional_response(
        etag_of(run, runs, caller), if_none_match, caller, lambda: RunClients(run=run, clients=history.clients(run))
    )


@router.get(
    "/clients/{name}",
    summary="One client over the steps",
    response_class=Response,
    responses=conditional_responses(ClientHistory),
)
async def client(
    run: str,
    name: str,
    *,
    runs: RunStoreDep,
    history: HistoryDep,
    caller: ReaderOrOwner,
    since_step: SinceStep = 0,
    max_points: MaxPoints = 1000,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return weight, also by domain, mean reward and failures. A client's token shows that client only."""
    return await conditional_response(
        etag_of(run, runs, caller), if_none_match, caller, lambda: history.client(run, name, since_step, max_points)
    )


@router.get("/checkpoints", summary="Checkpoints, oldest first")
async def checkpoints(run: str, history: HistoryDep, settings: SettingsDep, _: Reader) -> RunCheckpoints:
    """List the checkpoints that are on the disk; a run keeps its newest ``keep_checkpoints``."""
    reported = history.checkpoints(run)
    kept = await to_thread.run_sync(kept_checkpoints, folder_of(settings.runs_dir, run), reported)
    return RunCheckpoints(run=run, checkpoints=kept)


@router.get("/bad-prompts", summary="Prompts that cannot be used")
async def bad_prompts(
    run: str,
    *,
    runs: RunStoreDep,
    settings: SettingsDep,
    _: Reader,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED_OF_RUN)] = 1000,
) -> BadPrompts:
    """List the rows that the check before the first step found bad, by file and line, with the reason of each. A run
    leaves them out, or has failed where they are more than its ``max_bad_prompts``."""
    runs.revision(run)
    results = await to_thread.run_sync(read_run_checks, folder_of(settings.runs_dir, run))
    stored = [] if results is None else [stored.result for stored in results.files]
    listed = tuple(islice((row for result in stored for row in result.listed), limit))
    return BadPrompts(run=run, bad=sum(result.bad for result in stored), listed=listed)
