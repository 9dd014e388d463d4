"""Audit log: each change of a client or gate, with its author, as one JSON object per line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import structlog
from mor_core.server_clock import SERVER_CLOCK

Action = Literal[
    "enrol",
    "change",
    "rotate",
    "revoke",
    "import",
    "objective",
    "anchors",
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

log = structlog.get_logger("audit")


class AuditLog:
    """Appender to the file ``path``; without one, entries go to the log. Values must not contain secrets.

    A line has a bounded length, because reasons and names come from clients. Each line opens the file anew, so that it
    may be moved away at any time, as logrotate does.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def record(self, action: Action, subject: str, by: str, **details: str | int | float | None) -> None:
        details = {name: value[:_LONGEST] if isinstance(value, str) else value for name, value in details.items()}
        if self._path is None:
            log.info(action, subject=subject, by=by, **details)
            return
        line = json.dumps({"at": SERVER_CLOCK.now(), "action": action, "subject": subject, "by": by, **details})
        # One write per line in append mode, so that the lines of several processes do not mix.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)
