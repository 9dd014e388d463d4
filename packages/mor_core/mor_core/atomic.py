"""Files and folders that appear whole or not at all: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mor_core.errors import Conflict

_PARTIAL = ".part"
_REPLACED = ".old"
_DELETED = ".gone"


def write(target: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old content or the new; it is on the disk when this returns.

    ``mode`` holds the permission bits of the new file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_PARTIAL)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(mode)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(target.parent)


@contextlib.contextmanager
def folder(target: Path, *, replace: bool = True, durable: bool = True) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` when the body ends, and vanishes when the body fails.

    ``durable`` syncs the files first, so that a power cut cannot leave the new name with empty files.

    Raises:
        Conflict: ``target`` exists and ``replace`` is off.
    """
    if target.exists() and not replace:
        raise Conflict(f"{target} exists; choose another folder, or delete this one first")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=_PARTIAL))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp keeps a folder private to its owner; services share run folders
        if durable:
            for path in [*partial.rglob("*"), partial]:
                _sync(path)
        if target.exists():
            replaced = partial.with_suffix(_REPLACED)
            target.rename(replaced)
            partial.rename(target)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            partial.rename(target)
        if durable:
            _sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def keep_newest(folders: Sequence[Path], count: int) -> None:
    """Delete all but the last ``count`` of ``folders``."""
    for path in folders[:-count]:
        deleted = path.with_name(f".{path.name}{_DELETED}")
        path.rename(deleted)
        shutil.rmtree(deleted, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove the half-written files and folders that a killed process left below ``root``."""
    for suffix in (_PARTIAL, _REPLACED, _DELETED):
        for path in list(root.rglob(f".*{suffix}")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
