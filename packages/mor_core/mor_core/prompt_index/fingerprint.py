"""Fingerprint of a data set as it is read: equal while an index of it is valid."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import PIL

from mor_core.datafiles.sources.row_files import content_files, open_rows, reading
from mor_core.errors import Invalid

_CODE = ("datafiles", "prompt_index", "images.py", "image_budget.py", "grey_depth.py", "wire")
"""Modules that decide what is read from a file."""


def fingerprint(path: Path, columns: str) -> str:
    """Return 32 hex digits for a data set: its files with sizes and times, the map of its columns, and the reader.

    The time of the last change of a file's state (``ctime``) is a part of it: writing a file again and setting its
    time back changes it.

    Raises:
        Invalid: there is no such data set.
    """
    files = content_files(path)
    if not files:
        raise Invalid(f"{path}: the library datasets keeps it in memory; unset HF_DATASETS_IN_MEMORY_MAX_SIZE")
    with reading(path):
        states = [(str(file.absolute()), file.stat()) for file in files]
    known = {
        "path": str(path),
        "root": str(open_rows(path).root.absolute()),
        "files": [(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states],
        "columns": columns,
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(known).encode(errors="surrogateescape")).hexdigest()[:32]


def later_fingerprint(name: str, found: Iterable[str]) -> str:
    """Return the name of the index that follows another one, after the changes ``found`` in pictures."""
    known = hashlib.sha256(name.encode())
    for one in found:
        known.update(one.encode() + b"\0")
    return known.hexdigest()[:32]


def file_state(file: Path) -> str:
    """Return size and times of a file, empty for none; another content has another state."""
    try:
        state = file.stat()
    except (OSError, ValueError):
        return ""
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


@functools.cache
def _code() -> str:
    """Return a hash of the reader's source, so that an index never outlives a change of what is read."""
    root = Path(__file__).parent.parent
    found = hashlib.sha256(PIL.__version__.encode())
    for name in _CODE:
        place = root / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            found.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()
