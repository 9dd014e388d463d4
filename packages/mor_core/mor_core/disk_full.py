"""Full disks: how an error tells one, which writers find none free, and how much is free.

Full means that a person or a sweep can make room and the same write then succeeds: no space (``ENOSPC``), no quota
(``EDQUOT``), the largest file that a file system or a process limit allows (``EFBIG``), and the errors of SQLite and
PostgreSQL for these. Such a write waits. A disk that is broken or read-only (``EIO``, ``EROFS``) is another fault:
waiting does not cure it, so it fails as before, with its message.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from mor_core.errors import Unavailable
from mor_core.failures import describe_failure
from mor_core.metrics import DISK_FREE, DISK_FULL, DISK_SIZE

T = TypeVar("T")

_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_SQLITE_FULL = 13
"""``sqlite3.SQLITE_FULL``."""
_POSTGRESQL_FULL = "53100"
"""``disk_full`` of PostgreSQL."""
_IN_TEXT = re.compile(r"\(os error (\d+)\)")
"""Number of the system's error in a message of a Rust library, such as safetensors."""
_TORCH_WRITER = re.compile(r"inline_container\.cc:\d+\] \. unexpected pos|PytorchStreamWriter failed writing")
"""Messages of ``torch.save`` for a write that took only a part of the bytes, which it does not explain further."""
_LONGEST_CHAIN = 20
"""Causes that are looked at: no library wraps an error as often."""
RETRY_S = 5.0
"""Seconds after which a write may be tried again: room is made by a person or a sweep, and not in milliseconds."""
_QUEUE_SERVER = re.compile(r"MISCONF |OOM |(?:OOM )?command not allowed when used memory")
"""Answers of a queue server that cannot write its append-only file, or whose memory is used up."""

log = structlog.get_logger(__name__)


class DiskFull(Unavailable):
    """A disk has no room for what is to be written, and nothing of it is there; the same write may succeed later."""

    title = "Disk full"

    def __init__(self, message: str) -> None:
        super().__init__(message, RETRY_S)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one that it follows from, says that a disk is full."""
    found: BaseException | None = error
    for _ in range(_LONGEST_CHAIN):
        if found is None:
            return False
        if _tells_full(found):
            return True
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return False


def _tells_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _ERRORS
    if type(error).__module__ in ("sqlite3", "psycopg.errors"):  # which the command line does without
        codes = getattr(error, "sqlite_errorcode", None), getattr(error, "sqlstate", None)
        return codes[0] == _SQLITE_FULL or codes[1] == _POSTGRESQL_FULL
    if isinstance(error, BaseExceptionGroup):
        return any(is_disk_full(part) for part in error.exceptions)
    if isinstance(error, RuntimeError):
        return _TORCH_WRITER.search(str(error)) is not None
    if type(error).__module__.startswith("safetensors"):
        number = _IN_TEXT.search(str(error))
        return number is not None and int(number[1]) in _ERRORS
    return isinstance(error, DiskFull)


def is_server_full(error: BaseException) -> bool:
    """Return whether a queue server refuses writes because its disk or its memory is full."""
    return type(error).__module__.startswith("redis.") and _QUEUE_SERVER.match(str(error)) is not None


def write_when_room(what: str, write: Callable[[], T], pause: Callable[[float], object]) -> T:
    """Return ``write()``, repeated while its disk is full.

    ``pause`` waits for about the given seconds, and raises where the work must end.
    """
    while True:
        try:
            return write()
        except Exception as error:
            if not is_disk_full(error):
                raise
            log.warning("the disk is full; the work waits", what=what, reason=describe_failure(error))
        pause(RETRY_S)


@contextmanager
def watched(writer: str) -> Iterator[None]:
    """Set ``mor_disk_full`` by whether the body finds room. ``writer`` is a fixed word. Every error is raised."""
    try:
        yield
    except BaseException as error:
        if is_disk_full(error):
            DISK_FULL.labels(writer).set(1)
        raise
    DISK_FULL.labels(writer).set(0)


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free on the disk of ``folder``; for a missing folder, on that of its nearest parent."""
    return shutil.disk_usage(existing(folder)).free


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files below ``folder``, links not followed; one that is deleted meanwhile has none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(place) / name).lstat().st_size
    return total


def existing(folder: Path) -> Path:
    """Return ``folder``, or the nearest of its parents that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def export_room(folders: Mapping[str, Path]) -> None:
    """Export free space and size of the disks of ``folders`` (a fixed word -> path), measured at each scrape."""
    for word, folder in folders.items():
        DISK_FREE.labels(word).set_function(partial(free_bytes, folder))
        DISK_SIZE.labels(word).set_function(partial(_size, folder))


def _size(folder: Path) -> int:
    return shutil.disk_usage(existing(folder)).total
