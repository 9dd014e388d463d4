"""Check of the places that a command writes to, before its work begins: a result that cannot be written is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from mor_core.errors import Invalid


def check_file(path: Path, option: str) -> None:
    """Check that a file can be written, and that nothing else has its name.

    Raises:
        Invalid: it cannot; names ``option``, which gave the path.
    """
    if path.is_dir():
        raise Invalid(f"{option} {path} is a folder; give the name of a file")
    _check_parent(path, option)
    if path.exists() and not os.access(path, os.W_OK):
        raise Invalid(f"{option} {path} cannot be written (Permission denied); give another file")


def check_folder(path: Path, option: str) -> None:
    """Check that a folder can be made or replaced.

    Raises:
        Invalid: it cannot; names ``option``, which gave the path.
    """
    if path.exists() and not path.is_dir():
        raise Invalid(f"{option} {path} is a file; give the name of a folder")
    _check_parent(path, option)


def check_contents(path: Path, option: str) -> None:
    """Check that files can be written into a folder, which may be missing yet.

    Raises:
        Invalid: they cannot; names ``option``, which gave the path.
    """
    _check_parent(path / "file", option)


def _check_parent(path: Path, option: str) -> None:
    """Write a nameless file into the nearest folder that exists: permission bits alone do not tell of every refusal.

    A full disk is no mistake: the work waits for room.
    """
    place = path.absolute().parent
    with contextlib.suppress(OSError):
        while not place.exists() and place != place.parent:
            place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        raise Invalid(
            f"{option} {path} cannot be written ({place}: {error.strerror}); give a path below a folder in which you "
            "may write"
        ) from error
