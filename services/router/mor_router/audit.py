"""Audit log: each change of a client or gate, with its author, as one JSON object per line."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections import deque
from pathlib import Path
from typing import Literal

import structlog
from mor_core import disk_full
from mor_core.failures import describe_failure
from mor_core.server_clock import SERVER_CLOCK

Action = Literal[
    "enrol",
    "change",
    "rotate",
    "revoke",
    "import",
    "objective",
    "anchors",
    "candidates",
    "propose",
    "fit",
    "activate",
    "rollback",
    "rekey",
    "quarantine",
    "drift",
    "disagreement",
    "unreliable",
    "refit",
    "labeller",
    "label",
    "withdraw",
]

_LONGEST = 2000
"""Most characters of a detail: the longest that a request may carry, ``domains``."""

_MOST_WAITING = 10_000
"""Lines that wait in memory for room on the disk, a few kilobytes each at most."""

log = structlog.get_logger("audit")


class AuditLog:
    """Appender to the file ``path``; without one, entries go to the log. Values must not contain secrets.

    A line has a bounded length, because reasons and names come from clients. Each line opens the file anew, so that it
    may be moved away at any time, as logrotate does. Lines that find no room on the disk wait in memory and stand in
    the service's log too; the change that they are about is made.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            disk_full.export_room({"audit log": path.parent})
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._retry: threading.Timer | None = None

    def record(self, action: Action, subject: str, by: str, **details: str | int | float | None) -> None:
        details = {name: value[:_LONGEST] if isinstance(value, str) else value for name, value in details.items()}
        if self._path is None:
            log.info(action, subject=subject, by=by, **details)
            return
        line = json.dumps({"at": SERVER_CLOCK.now(), "action": action, "subject": subject, "by": by, **details})
        with self._lock:
            self._waiting.append(f"{line}\n".encode())
        if not self._write_waiting():
            log.warning("the audit log's disk is full; its line waits", audit=line)

    def _write_waiting(self) -> bool:
        """Write the lines that wait, oldest first. Return whether all are in the file, or try again later."""
        with self._lock:
            try:
                with disk_full.watched("audit log"):
                    while self._waiting:
                        self._append(self._waiting[0])
                        self._waiting.popleft()
            except OSError as error:
                if not disk_full.is_disk_full(error):
                    self._waiting.clear()  # the caller gets the error; a later line must not fail for this one
                    raise
                if self._retry is None or not self._retry.is_alive():
                    self._retry = threading.Timer(disk_full.RETRY_S, self._write_again)
                    self._retry.daemon = True
                    self._retry.start()
                return False
            return True

    def _write_again(self) -> None:
        self._retry = None
        try:
            self._write_waiting()
        except OSError as error:
            log.error("lines of the audit log are lost from its file", error=describe_failure(error))

    def _append(self, line: bytes) -> None:
        """Append a line in one write, so that the lines of several processes do not mix.

        Raises:
            OSError: the file cannot be written. The line that follows a part of one begins on a line of its own.
        """
        assert self._path is not None
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # what a full disk took of an earlier line
                line = b"\n" + line
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
