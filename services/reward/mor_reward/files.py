"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mor_core.errors import Conflict


def write_whole(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write ``path`` so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).chmod(mode)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


@contextmanager
def folder_whole(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that takes the place of ``path`` when the block ends well and vanishes when it does not.

    Raises:
        Conflict: ``path`` exists and ``overwrite`` is off.
    """
    if path.exists() and not overwrite:
        raise Conflict(f"{path} exists; choose another --out, or replace it with --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield scratch
        scratch.chmod(0o755)
        if path.exists():
            retired = scratch.with_suffix(".old")
            path.rename(retired)
            scratch.rename(path)
            shutil.rmtree(retired)
        else:
            scratch.rename(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
