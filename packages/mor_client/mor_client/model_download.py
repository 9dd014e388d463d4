"""Download of a run's exported model: file by file, each checked by its hash, into a folder that appears at the end.

A download that was cut off leaves ``{folder}.part`` and continues from there.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mor_core.errors import Invalid
from mor_core.run_storage import ExportedFile, ExportRequest, ModelExport

from mor_client.errors import ServiceError
from mor_client.transport import Transport

_POLL_S = 1.0
"""Pause between questions whether the export is ready, seconds; a small model takes about ten."""
_ATTEMPTS = 8
"""Attempts to fetch a file without a single byte in between: about a minute, a restart of run control."""
_LONGEST_PAUSE_S = 15.0
"""Longest mean pause before the next attempt, seconds."""


def fetch_model(
    control: Transport, run: str, folder: Path, request: ExportRequest, told: Callable[[str], object]
) -> ModelExport:
    """Have run control export a model, and fetch it into the new folder ``folder``.

    Raises:
        Invalid: ``folder`` exists, or a file arrived damaged twice.
        ServiceError: run control refused, or the export failed.
    """
    if folder.exists():
        raise Invalid(f"{folder} exists; name a new folder")
    if not folder.absolute().parent.is_dir():
        raise Invalid(f"{folder.absolute().parent} is no folder; create it first")
    made = prepare_export(control, run, request, told)
    part = folder.with_name(f"{folder.name}.part")
    wanted = sum(file.bytes for file in made.files)
    part.mkdir(exist_ok=True)
    free = shutil.disk_usage(part).free + sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    if free < wanted:
        raise Invalid(f"the model has {wanted:,} bytes and {free:,} are free for {folder}; make room, or name another")
    for number, file in enumerate(made.files, 1):
        told(f"file {number} of {len(made.files)}: {file.name}, {file.bytes:,} bytes")
        _fetch(control, f"/v1/runs/{run}/exports/{made.name}/file", part, file)
    _remove_others(part, made)
    part.rename(folder)
    return made


def prepare_export(control: Transport, run: str, request: ExportRequest, told: Callable[[str], object]) -> ModelExport:
    """Have run control export a model, and return the export once it is ready.

    Raises:
        ServiceError: run control refused, or the export failed.
    """
    body = request.model_dump(mode="json", exclude_none=True)
    made: ModelExport = control.call("POST", f"/v1/runs/{run}/exports", ModelExport, json=body, idempotent=True)
    if made.state == "preparing":
        told(f"run control prepares {made.name}")
    while made.state == "preparing":
        time.sleep(_POLL_S)
        made = control.get(f"/v1/runs/{run}/exports/{made.name}", ModelExport)
    if made.state == "failed":
        cure = "read run control's log, or run 'mor-trainer export' where a worker runs"
        raise ServiceError("control", f"{made.name} of run {run} could not be exported: {made.error}", cure)
    return made


def _fetch(control: Transport, path: str, part: Path, file: ExportedFile) -> None:
    """Fetch a file, or what is missing of it.

    Raises:
        Invalid: its name leads out of the folder, or its content is not what run control lists.
    """
    name = PurePosixPath(file.name)
    if name.is_absolute() or ".." in name.parts:
        raise Invalid(f"run control lists a file {file.name!r}, which is outside of the model's folder")
    target = part / name
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):  # what an earlier download left may be of another export
        _receive(control, path, file.name, target, file.bytes)
        with target.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest == file.sha256:
            return
        target.unlink()
    raise Invalid(f"{file.name} arrived with SHA-256 {digest[:12]}…, and {file.sha256[:12]}… is listed; try again")


def _receive(control: Transport, path: str, name: str, target: Path, size: int) -> None:
    """Append what is missing of a file, across lost connections."""
    with target.open("ab") as file:
        if file.tell() > size:  # of another export
            file.seek(0)
            file.truncate()
        failures = 0
        while (have := file.tell()) < size:
            try:
                control.download(path, file, size - have, path=name)
            except ServiceError as error:
                failures = 1 if file.tell() > have else failures + 1
                if failures == _ATTEMPTS or not error.lost:
                    raise
                time.sleep(random.uniform(0.5, 1.5) * min(2.0**failures / 4, _LONGEST_PAUSE_S))


def _remove_others(part: Path, made: ModelExport) -> None:
    """Remove files that an earlier download of another export left."""
    listed = {part / file.name for file in made.files}
    for path in list(part.rglob("*")):
        if path.is_file() and path not in listed:
            path.unlink()
