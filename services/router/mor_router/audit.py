"""Audit log: each change of a client or gate, with its author, as one JSON object per line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Literal

import structlog

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
    "refit",
    "labeller",
    "label",
]

log = structlog.get_logger("audit")


class AuditLog:
    """Appender to the file ``path``; without one, entries go to the log. Values must not contain secrets."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def record(self, action: Action, subject: str, by: str, **details: str | int | float | None) -> None:
        if self._path is None:
            log.info(action, subject=subject, by=by, **details)
            return
        line = json.dumps({"at": time.time(), "action": action, "subject": subject, "by": by, **details})
        # One write per line in append mode, so that the lines of several processes do not mix.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)
