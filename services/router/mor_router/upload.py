"""Anchor uploads: ``mor.prefs/1`` as JSONL, pictures as data URIs or as files beside it in a multipart form."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mor_core.datafiles import Preference, read_preferences
from mor_core.errors import DataFileError, Invalid

from mor_router.objectives import Anchor

_FILE = "anchors.jsonl"


def read_upload(lines: bytes, files: Mapping[str, bytes]) -> tuple[list[Anchor], dict[str, bytes]]:
    """Anchors and their images by hash, from the text of a JSONL file and the files that it names.

    Raises:
        DataFileError: the line that is wrong and what to do.
        Invalid: a file name that leaves the upload.
    """
    with tempfile.TemporaryDirectory(prefix="mor-anchors-") as name:
        folder = Path(name)
        for path, content in files.items():
            target = folder / _inside(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        _check_images(lines, set(files))
        (folder / _FILE).write_bytes(lines)
        try:
            preferences = read_preferences(folder / _FILE)
        except DataFileError as error:
            problem = str(error).replace(f"{folder}/", "").removeprefix(f"{_FILE}:{error.line}: ")
            raise DataFileError(_FILE, error.line, problem) from error
    images = {digest: content for row in preferences for digest, content in row.prompt.images.items()}
    return [_anchor(row) for row in preferences], images


def _inside(path: str) -> PurePosixPath:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or pure == PurePosixPath(_FILE):
        raise Invalid(f"file name {path[:100]!r}: a path relative to the anchors file is wanted, without '..'")
    return pure


def _check_images(lines: bytes, files: set[str]) -> None:
    """Nothing but what was uploaded may be read: an uploaded line could name any file of this machine."""
    known = {str(PurePosixPath(path)) for path in files}
    # The lines must be those that the reader will see; str.splitlines knows more line ends than files do.
    for number, line in enumerate(io.StringIO(lines.decode(errors="surrogateescape"), newline=None), 1):
        try:
            row: Any = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError:
            continue  # the reader tells of it
        cells = row.get("images") if isinstance(row, dict) else None
        for cell in cells if isinstance(cells, list) else []:
            if not isinstance(cell, str):
                raise DataFileError(_FILE, number, "images: a data URI or the name of an uploaded file is wanted")
            if not cell.startswith("data:") and str(PurePosixPath(cell)) not in known:
                raise DataFileError(
                    _FILE, number, f"images: {cell[:100]!r} was not uploaded; send it in the form field 'images'"
                )


def _anchor(row: Preference) -> Anchor:
    identity = json.dumps([[m.model_dump(mode="json") for m in row.prompt.messages], row.chosen, row.rejected])
    return Anchor(
        id=row.prompt.id,
        digest=hashlib.sha256(identity.encode()).hexdigest(),
        messages=row.prompt.messages,
        chosen=row.chosen,
        rejected=row.rejected,
        domain=row.prompt.domain,
    )
