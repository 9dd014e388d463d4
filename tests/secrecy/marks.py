"""Marked secrets, and the search for them in everything that a process puts out."""

from __future__ import annotations

import base64
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any, Literal
from urllib.parse import quote

import structlog
from mor_core import hidden_secrets, logs

_TAIL = "q7-Zk_w9/x+Yv8Tn4s"
MARKS = {
    kind: f"{kind}-{_TAIL}"
    for kind in (
        *("enrolmenttoken", "servicetoken", "pagetoken", "clientsecret", "fernetkey", "redispassword", "webhooksecret"),
        *("prompt", "response", "picture", "preference"),
    )
}
"""Kind of secret -> its mark. The tail has characters that URLs and base64 write in their own way."""


class Quoting(Exception):  # as of a library: its module is no part of MoR
    """Exception whose message quotes all that its raiser had in hand."""


def quote_all() -> str:
    """Return a text with every mark as given, in a URL and in base64."""
    return " ".join(f"{mark} {quote(mark, safe='')} {encoded(mark)}" for mark in MARKS.values())


def encoded(mark: str) -> str:
    return base64.b64encode(mark.encode()).decode()


def fail(*_: Any, **__: Any) -> Any:
    """Raise an exception with marks in its message, its notes, its cause, and the local variables of its frames."""
    private = dict(MARKS)
    try:
        raise KeyError(private["prompt"])
    except KeyError as error:
        failure = Quoting(quote_all(), private)
        failure.add_note(quote_all())
        raise failure from error


async def fail_async(*_: Any, **__: Any) -> Any:
    fail()


def found(text: str) -> list[str]:
    """Return the kinds whose mark occurs in ``text``: as given, in a URL, in base64 at any alignment, in JSON."""
    return sorted(kind for kind, mark in MARKS.items() if any(form in text for form in hidden_secrets._written(mark)))


@contextmanager
def logged(style: Literal["json", "console"] = "json") -> Iterator[StringIO]:
    """Send the log of this process at level debug to a buffer."""
    root, before = logging.getLogger(), structlog.get_config()
    hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.stderr)
    kept = (root.handlers, root.level)
    library = (logging.Logger.callHandlers, logging.raiseExceptions, warnings.showwarning)
    sys.stderr = buffer = StringIO()
    try:
        logs.configure("debug", style)
        structlog.configure(cache_logger_on_first_use=False)  # later tests capture the logs of the same modules
        yield buffer
    finally:
        root.handlers, root.level = kept
        sys.excepthook, threading.excepthook, sys.unraisablehook, sys.stderr = hooks
        logging.Logger.callHandlers, logging.raiseExceptions, warnings.showwarning = library  # type: ignore[method-assign]
        structlog.configure(**before)


def lines(buffer: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in buffer.getvalue().splitlines()]
