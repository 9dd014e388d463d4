"""Reader of anchor uploads: ``mor.prefs/1`` as JSONL, pictures as data URIs or as files of a multipart form.

An upload is written to a temporary folder, and a data file cannot read anything outside its folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from mor_core.datafiles import Preference, read_preferences
from mor_core.errors import DataFileError, Invalid

from mor_router.objectives.objective_store import Anchor, digest_of

_FILE = "anchors.jsonl"


def read_upload(
    lines: bytes, files: Mapping[str, bytes], *, public: bool = False
) -> tuple[list[Anchor], dict[str, bytes]]:
    """Read anchors, and their images by hash, from the text of a JSONL file and the files that it names.

    ``public``: mark them as public.

    Raises:
        DataFileError: a line is wrong; the message names it.
        Invalid: a file name points outside the upload.
    """
    with tempfile.TemporaryDirectory(prefix="mor-anchors-") as name:
        folder = Path(name)
        for path, content in files.items():
            target = folder / _checked(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        (folder / _FILE).write_bytes(lines)
        try:
            preferences = read_preferences(folder / _FILE)
        except DataFileError as error:
            problem = str(error).removeprefix(f"{folder / _FILE}:{error.line}: ")
            raise DataFileError(_FILE, error.line, problem) from error
    images = {digest: content for row in preferences for digest, content in row.prompt.images.items()}
    return [_anchor(row, public=public) for row in preferences], images


def _checked(path: str) -> PurePosixPath:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or pure == PurePosixPath(_FILE):
        raise Invalid(f"file name {path[:100]!r}: a path relative to the anchors file is wanted, without '..'")
    return pure


def _anchor(row: Preference, *, public: bool) -> Anchor:
    return Anchor(
        id=row.prompt.id,
        digest=digest_of(row.prompt.messages, row.chosen, row.rejected),
        messages=row.prompt.messages,
        chosen=row.chosen,
        rejected=row.rejected,
        domain=row.prompt.domain,
        public=public,
    )
