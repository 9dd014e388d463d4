"""Routes of weight files, for the rollout service."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.responses import FileResponse
from mor_core.errors import NotFound
from mor_core.wire import WeightsManifest

from mor_trainer.routes.dependencies import Number, RunStoreDep, Service, SettingsDep
from mor_trainer.routes.etag import matches
from mor_trainer.run_files import folder_of
from mor_trainer.weights.version_files import file_of, published_versions, read_manifest

router = APIRouter(prefix="/v1/runs/{run}/weights", tags=["weights"])


class _WeightsResponse(FileResponse):
    chunk_size = 4 << 20  # a thread hop for each chunk: few and large


@router.get("/latest", summary="Newest published version")
async def latest(run: str, runs: RunStoreDep, settings: SettingsDep, _: Service) -> WeightsManifest:
    runs.revision(run)
    versions = published_versions(folder_of(settings.runs_dir, run))
    if not versions:
        raise NotFound(f"run {run} has published no weights yet; wait until a worker starts the run")
    return _manifest(run, versions[-1], settings)


@router.get("/{version}", summary="Manifest of a version")
async def manifest(run: str, version: Number, runs: RunStoreDep, settings: SettingsDep, _: Service) -> WeightsManifest:
    """Return the files with sizes and hashes, and the hash of each tensor."""
    runs.revision(run)
    return _manifest(run, version, settings)


@router.get("/{version}/{file}", summary="A file of a version", response_class=FileResponse)
async def weights_file(
    run: str,
    version: Number,
    file: str,
    *,
    runs: RunStoreDep,
    settings: SettingsDep,
    _: Service,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Return the bytes of a file, or a ``Range`` of them; ``ETag`` is the file's checksum."""
    runs.revision(run)
    listed = {item.name: item for item in _manifest(run, version, settings).served}
    if file not in listed:
        raise NotFound(f"version {version} of run {run} has no file {file!r}; it has {', '.join(listed) or 'none'}")
    headers = {"ETag": f'"{listed[file].checksum}"'}
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    path = file_of(folder_of(settings.runs_dir, run), version, listed[file])
    if path is None:
        raise NotFound(f"file {file!r} of version {version} of run {run} is gone or was changed; take /weights/latest")
    return _WeightsResponse(path, headers=headers, media_type="application/octet-stream")


def _manifest(run: str, version: int, settings: SettingsDep) -> WeightsManifest:
    found = read_manifest(folder_of(settings.runs_dir, run), version)
    if found is None:
        kept = published_versions(folder_of(settings.runs_dir, run))
        raise NotFound(f"run {run} has no weights version {version}; it keeps {kept or 'none'}, take /weights/latest")
    return found
