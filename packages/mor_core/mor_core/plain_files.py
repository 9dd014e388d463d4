"""Files in folders that others write to: no links, no devices, no more bytes than expected, and gone at any time."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mor_core.errors import Invalid


def read_plain_file(path: Path, largest: int) -> bytes:
    """Return the content of a file of up to ``largest`` bytes. The apparent size counts, holes included.

    Raises:
        Invalid: it is a link, no regular file, or larger.
        OSError: it cannot be opened.
    """
    if path.is_symlink():
        raise Invalid(f"{path} is a link; put the file itself in its place")
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise Invalid(f"{path} is no regular file; remove it")
        if found.st_size > largest:
            raise Invalid(f"{path} has {found.st_size} bytes, at most {largest} are read")
        return file.read(largest)


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Sort files or folders by their time of change, without those that are gone by now."""
    changed: dict[Path, float] = {}
    for path in paths:
        with suppress(FileNotFoundError):
            changed[path] = path.stat().st_mtime
    return sorted(changed, key=changed.__getitem__, reverse=True)


def check_plain_folder(folder: Path) -> None:
    """Check that a folder and all in it are plain folders and files, so that nothing leads out of it.

    Raises:
        Invalid: there is a link, a device or a pipe.
    """
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise Invalid(f"{path} is a link or no regular file; put the file itself in its place")
