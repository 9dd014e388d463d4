"""Files and folders that appear whole or not at all: written beside their place, synced, then renamed into it.

With ``staging`` they are written in that folder of the same file system, and deleted by way of it. A writer whose
folder was removed can neither replace nor delete anything: each of its renames raises ``FileNotFoundError``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from mor_core.errors import Conflict

_PARTIAL = ".part"
_REPLACED = ".old"
_DELETED = ".gone"
LEFTOVERS = (_PARTIAL, _REPLACED, _DELETED)
"""Ends of the hidden names of files and folders that a killed process left."""
_NO_FOLDER_SYNC = (errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOTSUP)
"""Errors of network file systems, and of folders that may be written and not read: the content is in place then."""


def write(target: Path, content: bytes, *, mode: int | None = None, staging: Path | None = None) -> None:
    """Write a file so that a reader sees the old content or the new; it is on the disk when this returns.

    ``mode`` holds the permission bits of the new file; by default the umask decides.
    """
    partial = _partial(target, staging)
    # Nobody else may open the file before it has its mode.
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            partial.chmod(mode)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(target.parent)


@contextlib.contextmanager
def folder(
    target: Path,
    *,
    replace: bool = True,
    durable: bool = True,
    mode: int | None = None,
    staging: Path | None = None,
) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` when the body ends, and vanishes when the body fails.

    ``durable`` syncs the files first, so that a power cut cannot leave the new name with empty files. ``mode`` holds
    the permission bits of the folder; by default the umask decides, and the folder has its parent's set-group-ID bit.
    Each file can be read and written by whom the folder's bits allow it to.

    Raises:
        Conflict: ``target`` exists and ``replace`` is off.
    """
    if target.exists() and not replace:
        raise Conflict(f"{target} exists; choose another folder, or delete this one first")
    partial = _partial(target, staging)
    partial.mkdir()
    try:
        yield partial
        if mode is not None:
            partial.chmod(mode)
        _open_files(partial)
        if durable:
            for path in [*partial.rglob("*"), partial]:
                _sync(path)
        if target.exists():
            replaced = partial.with_suffix(_REPLACED)
            target.rename(replaced)
            partial.rename(target)
            remove(replaced)
        else:
            partial.rename(target)
        if durable:
            _sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def keep_newest(folders: Sequence[Path], count: int, *, staging: Path | None = None) -> None:
    """Delete all but the last ``count`` of ``folders``."""
    for path in folders[:-count]:
        delete(path, staging=staging)


def delete(path: Path, *, staging: Path | None = None) -> None:
    """Delete a folder, of which no reader ever sees a part."""
    deleted = (staging or path.parent) / f".{path.name}.{secrets.token_hex(4)}{_DELETED}"
    path.rename(deleted)
    remove(deleted)


def sweep(root: Path, *, leave: str | None = None) -> None:
    """Remove the half-written files and folders that a killed process left below ``root``.

    ``leave``: begin of the names of folders in ``root`` that are left as they are.
    """
    for suffix in LEFTOVERS:
        for path in list(root.rglob(f".*{suffix}")):
            first = path.relative_to(root).parts[0]
            if leave is None or path.parent == root or not first.startswith(leave):
                remove(path)


def _open_files(folder: Path) -> None:
    """Give each file the read and write permissions that the folder has: libraries write files for their owner alone.

    safetensors 0.8 does, and a service of another user could not read the model.
    """
    wanted = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            present = stat.S_IMODE(path.stat().st_mode)
            if wanted & ~present:
                with contextlib.suppress(OSError):  # a file system whose modes are fixed
                    path.chmod(present | wanted)


def _partial(target: Path, staging: Path | None) -> Path:
    """Return an unused name beside ``target`` or in ``staging``, and create the folder of ``target``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return (staging or target.parent) / f".{target.name}.{secrets.token_hex(4)}{_PARTIAL}"


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, but not the target of a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Bring a file or a folder to the disk; folders only where the file system can sync them."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_FOLDER_SYNC:
            raise
