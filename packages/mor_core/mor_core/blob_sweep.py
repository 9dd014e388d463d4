"""Removal of blobs in the shared folder whose run is over or vanished, so that no crash leaves files for ever.

Redis deletes what belongs to a run a week after the last write; a folder or an object store deletes nothing by itself.
A sweep deletes files that nobody has written for as long, of runs that are not active. ``Blobs.put`` writes a file anew
once it is a day old, so that those of a run at work stay, also of one that this process does not know.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

from mor_core.blobs import FILE_NAME, age_s, is_run_id
from mor_core.stored import LEFTOVER_S

_MOST_FILES = 10_000
"""Files that one sweep looks at; the next one begins behind them."""
_MOST_S = 30.0
"""Longest sweep, seconds: an object store may take 0.1 s for each file."""


@dataclass(frozen=True)
class BlobSweep:
    """Outcome of one sweep."""

    runs: int
    """Runs of which files were deleted."""
    files: int
    bytes: int
    last_run: str
    """Run behind which the next sweep begins; empty once all were looked at."""


def sweep(directory: str, active: Collection[str], after: str = "") -> BlobSweep:
    """Delete old files of runs that are not ``active``, of those behind ``after`` in the order of their names.

    Names that are no run's or no blob's, and links, are left as they are.

    Raises:
        OSError: the folder cannot be read.
    """
    fs, root = fsspec.url_to_fs(directory)
    until = time.monotonic() + _MOST_S
    looked = files = size = runs = 0
    last = after
    for folder in sorted(_entries(fs, root, "directory"), key=_name):
        run = _name(folder)
        if run <= after or run in active or not is_run_id(run):
            continue
        deleted = 0
        for file in _files(fs, folder["name"]):
            if looked >= _MOST_FILES or time.monotonic() > until:
                return BlobSweep(runs + bool(deleted), files, size, last if deleted else run)
            looked += 1
            age = age_s(fs, file["name"])
            if age is not None and age > LEFTOVER_S:
                with contextlib.suppress(FileNotFoundError):  # its last owner released it meanwhile
                    fs.rm_file(file["name"])
                deleted, files, size = deleted + 1, files + 1, size + int(file["size"] or 0)
        runs, last = runs + bool(deleted), run
        if deleted:
            _remove_empty(fs, folder["name"])
    return BlobSweep(runs, files, size, "")


def delete_run(directory: str, run: str) -> int:
    """Delete the files of a run that is over, and return their number.

    Raises:
        OSError: the folder cannot be read, or a file not deleted.
    """
    fs, root = fsspec.url_to_fs(directory)
    deleted = 0
    for folder in (entry for entry in _entries(fs, root, "directory") if _name(entry) == run):
        for file in list(_files(fs, folder["name"])):
            with contextlib.suppress(FileNotFoundError):  # another process was first
                fs.rm_file(file["name"])
                deleted += 1
        _remove_empty(fs, folder["name"])
    return deleted


def _files(fs: Any, folder: str) -> Iterator[dict[str, Any]]:
    """Yield the blobs of a run, and what a writer left that was killed."""
    for part in _entries(fs, folder, "directory"):
        for file in _entries(fs, part["name"], "file"):
            if FILE_NAME.fullmatch(_name(file)) is not None and _name(file)[:2] == _name(part):
                yield file


def _entries(fs: Any, folder: str, kind: str) -> list[dict[str, Any]]:
    try:
        found = fs.ls(folder, detail=True, refresh=True)
    except FileNotFoundError:
        return []
    return [entry for entry in found if entry["type"] == kind and not entry.get("islink")]


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


def _remove_empty(fs: Any, folder: str) -> None:
    """Remove the folders of a run that are empty; object stores have none."""
    for path in [*(part["name"] for part in _entries(fs, folder, "directory")), folder]:
        with contextlib.suppress(OSError, NotImplementedError):
            fs.rmdir(path)
