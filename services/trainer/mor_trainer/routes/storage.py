"""Routes about what runs keep on the disk: sizes, deletion, archive, export of models."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import FileResponse
from mor_core.json_route import JsonRoute
from mor_core.openapi import problems
from mor_core.run_storage import (
    ExportRequest,
    Freed,
    ModelExport,
    ModelPush,
    PruneRequest,
    PushRequest,
    StorageReport,
)
from mor_core.runs import RunSnapshot

from mor_trainer.routes.dependencies import (
    Admin,
    Reader,
    RetentionDep,
    RunArchiveDep,
    RunDeletionDep,
    RunExportsDep,
    RunPushesDep,
    RunStoreDep,
    StorageReporterDep,
    WatchersDep,
)
from mor_trainer.routes.etag import matches

router = APIRouter(prefix="/v1", tags=["storage"], route_class=JsonRoute)


class _ModelFile(FileResponse):
    chunk_size = 4 << 20  # a thread hop for each chunk: few and large


@router.get("/storage", summary="Files of all runs, and the limits of what ended runs keep")
async def storage(reporter: StorageReporterDep, _: Reader) -> StorageReport:
    """List the runs with the sizes of their files, largest first. The sizes are at most ten seconds old."""
    return await reporter.report()


@router.delete("/runs/{run}", summary="Delete a run that is over, for good", responses=problems(409))
async def delete(
    run: str,
    *,
    deletion: RunDeletionDep,
    reporter: StorageReporterDep,
    watchers: WatchersDep,
    caller: Admin,
    dry_run: Annotated[bool, Query(description="Delete nothing, and return what would be freed.")] = False,
) -> Freed:
    """Delete a run with its files, history, alerts and what it has on the queue server. It is gone at once; its files
    follow within seconds to minutes, and `deleting` of `GET /v1/storage` names it until then."""
    freed = await deletion.delete(run, caller.name, dry_run=dry_run)
    if not dry_run:
        reporter.forget()
        watchers.wake(run)
    return freed


@router.post("/runs/{run}/prune", summary="Delete the checkpoints of a run that is over", responses=problems(409))
async def prune(
    run: str,
    *,
    retention: RetentionDep,
    reporter: StorageReporterDep,
    caller: Admin,
    request: PruneRequest | None = None,
) -> Freed:
    """Delete checkpoints, weights versions, replay log and exports now, as the limits of ended runs do later. The final
    model and the history stay."""
    options = request or PruneRequest()
    freed = await retention.prune(run, caller.name, keep_checkpoints=options.keep_checkpoints, dry_run=options.dry_run)
    reporter.forget()
    return freed


@router.post("/runs/{run}/archive", summary="Leave a run that is over out of the lists", responses=problems(409))
async def archive(
    run: str, archive: RunArchiveDep, runs: RunStoreDep, watchers: WatchersDep, caller: Admin
) -> RunSnapshot:
    """Archive a run. Its files and its history stay, and `GET /v1/runs?archived=true` lists it. A resumed run comes
    back by itself."""
    archive.put(run, caller.name)
    watchers.wake(run)
    return runs.snapshot(run)


@router.post("/runs/{run}/unarchive", summary="Bring an archived run back into the lists")
async def unarchive(
    run: str, archive: RunArchiveDep, runs: RunStoreDep, watchers: WatchersDep, caller: Admin
) -> RunSnapshot:
    archive.take_out(run, caller.name)
    watchers.wake(run)
    return runs.snapshot(run)


@router.post(
    "/runs/{run}/exports", status_code=202, summary="Export the model of a run that is over", responses=problems(409)
)
async def export(
    run: str,
    *,
    exports: RunExportsDep,
    caller: Admin,
    response: Response,
    request: ExportRequest | None = None,
) -> ModelExport:
    """Write the model of a checkpoint in Hugging Face's format, or list the files of the final model. Poll the address
    in `Location` until it is ready, then fetch its files. An export that exists is not made again."""
    made = await exports.begin(run, request or ExportRequest(), caller.name)
    response.headers["Location"] = f"/v1/runs/{run}/exports/{made.name}"
    return made


@router.get("/runs/{run}/exports/{name}", summary="State and files of an export", responses=problems(409))
async def exported(run: str, name: str, exports: RunExportsDep, _: Admin) -> ModelExport:
    return await exports.get(run, name)


@router.get(
    "/runs/{run}/exports/{name}/file",
    summary="A file of an export",
    response_class=FileResponse,
    responses=problems(409),
)
async def exported_file(
    run: str,
    name: str,
    *,
    path: Annotated[str, Query(max_length=500, description="Name of the file in the export's list.")],
    exports: RunExportsDep,
    _: Admin,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Return the bytes of a file, or a ``Range`` of them; ``ETag`` is the file's SHA-256."""
    file, listed = await exports.file(run, name, path)
    headers = {"ETag": f'"{listed.sha256}"'}
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return _ModelFile(file, headers=headers, media_type="application/octet-stream")


@router.post(
    "/runs/{run}/exports/{name}/push",
    status_code=202,
    summary="Push an export to a hub or a registry",
    responses=problems(403, 409),
)
async def push(
    run: str, name: str, *, pushes: RunPushesDep, caller: Admin, response: Response, request: PushRequest
) -> ModelPush:
    """Push an export that is ready to a destination that `MOR_PUSH_DESTINATIONS` allows. Poll the address in `Location`
    until it is done. The model appears at the destination whole or not at all; a push that was cut off is continued by
    the next one."""
    begun = await pushes.begin(run, name, request, caller.name)
    response.headers["Location"] = f"/v1/runs/{run}/exports/{name}/push"
    return begun


@router.get("/runs/{run}/exports/{name}/push", summary="State of the latest push of an export", responses=problems(409))
async def pushed(run: str, name: str, pushes: RunPushesDep, _: Admin) -> ModelPush:
    return await pushes.get(run, name)
