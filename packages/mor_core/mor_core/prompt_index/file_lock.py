"""Advisory lock on a file, which ends with its process."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path


class FileLock:
    """Lock on a file by ``flock``: of one process, or shared by many."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._close = weakref.finalize(self, os.close, handle)

    @classmethod
    def acquire(cls, file: Path, *, shared: bool = False) -> FileLock | None:
        """Lock a file at once; return ``None`` where another process has it locked, or where it was deleted.

        Raises:
            OSError: the file cannot be opened, or its file system has no locks.
        """
        handle = os.open(file, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, 0o666)
        lock = cls(handle)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), file.stat()):
                return lock
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError:
            lock.release()
            raise
        lock.release()
        return None

    def touch(self) -> None:
        """Set the file's time of change to now."""
        os.utime(self._handle)

    def release(self) -> None:
        self._close()
