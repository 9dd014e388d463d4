"""Folders and files that are there whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_PARTIAL = ".part"


@contextlib.contextmanager
def folder(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields an empty folder that becomes ``target`` when the body ends; an older ``target`` is replaced.

    ``durable`` syncs the files first, so that a power cut cannot leave the new name with empty files.
    """
    partial = target.with_name(f".{target.name}{_PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if durable:
            for path in partial.rglob("*"):
                _sync(path)
        if target.exists():
            old = target.with_name(f".{target.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(target)
        if durable:
            _sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write(target: Path, content: bytes) -> None:
    """A file that is there whole or not at all, and on the disk when this returns."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}{_PARTIAL}")
    partial.write_bytes(content)
    _sync(partial)
    partial.rename(target)
    _sync(target.parent)


def keep_newest(folders: list[Path], count: int) -> None:
    """Delete all but the last ``count`` of ``folders``."""
    for path in folders[:-count]:
        gone = path.with_name(f".{path.name}.gone")
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove what a process that was killed left half-written below ``root``."""
    for suffix in (_PARTIAL, ".old", ".gone"):
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
