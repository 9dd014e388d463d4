"""Structured logs, one set-up for every process: JSON lines in containers, readable on a terminal."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Literal

import structlog

_SECRET_WORDS = ("token", "secret", "password", "authorization", "credential")
# structlog's own renderers write the local variables of every frame, tokens and private prompts among them.
_JSON_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)
_ARGUMENTS = re.compile(r"((?:Exception in callback|<Handle).*?)\(.*\)")
"""Arguments of a callback in a line of asyncio's messages: all between the first and the last parenthesis. A line about
a task has its place in the source there and no arguments."""


def _hide_secrets(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key in event:
        if any(word in key.lower() for word in _SECRET_WORDS) and not isinstance(event[key], int | float):
            event[key] = "[hidden]"
    return event


def _hide_arguments(record: logging.LogRecord) -> bool:
    """Remove arguments from asyncio's messages, as in ``Exception in callback send('private prompt') at file.py:3``."""
    record.msg, record.args = _ARGUMENTS.sub(r"\1(...)", record.getMessage()), ()
    return True


def configure(level: str = "info", style: Literal["auto", "json", "console"] = "auto", **bound: str) -> None:
    """Send the logs of structlog and of the standard library to standard error.

    ``bound`` are fields of every line, the service's name for example. Values under a key that names a secret are
    hidden, and tracebacks carry no local variables.
    """
    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        _hide_secrets,
        *([_JSON_TRACEBACKS] if as_json else []),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for chatty in ("httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("asyncio").filters = [_hide_arguments]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
