"""Log of one process, renamed when it has reached its size."""

from __future__ import annotations

import logging
import threading
from collections import deque
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

_LAST_LINES = 25
"""Lines that an error quotes."""
_JOIN_S = 20.0
"""Longest wait for the end of the output, seconds: a child in a session of its own may keep the pipe open."""
_LONGEST_LINE = 1 << 16
"""Bytes after which a line without an end is written all the same."""


class RotatedLog:
    """File that takes the output of a process, of each that follows it under the same name as well."""

    def __init__(self, file: Path, most_bytes: int, kept: int) -> None:
        self.file = file
        self._handler = _LogFile(file, maxBytes=most_bytes, backupCount=kept, encoding="utf-8")
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._reader: threading.Thread | None = None

    def follow(self, output: IO[bytes]) -> None:
        """Write all output of a process, on a thread of its own, and close the pipe at its end."""
        self.join()
        self._reader = threading.Thread(target=self._copy, args=(output,), name=f"log {self.file.name}", daemon=True)
        self._reader.start()

    def _copy(self, output: IO[bytes]) -> None:
        with output:
            while line := output.readline(_LONGEST_LINE):
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                self._last.append(text)
                self._handler.handle(logging.makeLogRecord({"msg": text}))

    def last_lines(self) -> list[str]:
        """Return the end of the log."""
        self.join()
        return list(self._last)

    def join(self) -> None:
        """Wait until the output of the process has been written."""
        if self._reader is not None:
            self._reader.join(timeout=_JOIN_S)

    def close(self) -> None:
        self.join()
        self._handler.close()


class _LogFile(RotatingFileHandler):
    """File that loses lines while its disk is full, and nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Leave the line out; its process must not wait, and a traceback would quote it."""
