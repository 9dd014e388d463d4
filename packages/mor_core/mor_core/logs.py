"""Structured logs, one set-up for every process and its children: JSON lines in containers, readable on a terminal.

Nothing private and no secret is written: tracebacks carry no local variables and no message that may quote data, known
secrets are removed from the finished line, values under a key that names a secret are hidden, and libraries log
warnings and errors only, since their debug lines have prompts and headers. On a terminal no control character of a
value is sent as such. Lines of libraries take the same way, whatever handlers they bring. A line that repeats itself is
limited in number.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal

import structlog

from mor_core.failures import describe_failure, describe_warning, format_traceback, traceback_of
from mor_core.hidden_secrets import HIDDEN, SECRET_NAME, hide_secrets, remember_environment
from mor_core.log_limit import LogLimit
from mor_core.printable import visible, visible_lines
from mor_core.retries import log_retries

Level = Literal["debug", "info", "warning", "error"]
Style = Literal["auto", "json", "console"]

_OURS = ("mor_core", "mor_client", "mor_reward", "mor_router", "mor_rollout", "mor_trainer", "audit", "__main__", "mor")
"""Loggers whose lines are MoR's own, at the chosen level."""
_SERVER = "uvicorn.error"
"""Logger of the HTTP server's start and end; its access log, with query strings, is off."""
_ARGUMENTS = re.compile(r"((?:Exception in callback|<\w*Handle).*?)\(.*\)")
"""Arguments of a callback in a line of asyncio's messages: all between the first and the last parenthesis. A line about
a task has its place in the source there and no arguments."""
_EXCEPTION = re.compile(r"exception=.*", re.DOTALL)
"""Exception of a task in such a message, with its own message; the traceback follows without it."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Sequence that sets a colour on a terminal."""

log = structlog.get_logger("mor")

_given: dict[str, Any] | None = None
"""Arguments of ``configure``, once it was called."""
_print_exc = traceback.print_exc


def configure(level: Level = "info", style: Style = "auto", **bound: str) -> None:
    """Send the logs of structlog, of the standard library and of uncaught exceptions to standard error.

    ``bound`` are fields of every line, the service's name for example.
    """
    global _given  # noqa: PLW0603
    _given = {"level": level, "style": style, **bound}
    remember_environment()
    logging.Logger.callHandlers = _call_handlers  # type: ignore[method-assign]
    logging.raiseExceptions = False  # else a handler that fails prints the line's arguments
    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        _remove_colours,
        _hide_named_secrets,
        _render_exception_for_json if as_json else _render_exception_for_people,
    ]
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.JSONRenderer()]
        if as_json
        else [
            _make_visible,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_is_ours_or_warns)
    handler.addFilter(LogLimit())
    handler.setFormatter(
        _SecretFreeFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.ERROR if level == "error" else logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())
    logging.getLogger(_SERVER).setLevel("INFO" if level == "debug" else level.upper())
    for chatty in ("httpx", "httpcore", "uvicorn.access"):  # whose parents or own configuration may be set elsewhere
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("asyncio").filters = [_hide_arguments]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    traceback.print_exc = _log_printed
    warnings.showwarning = _log_warning
    log_retries()


def for_children() -> Callable[[], None]:
    """Return what a child process calls first, so that its logs are as those of this one. It can be pickled.

    A command without logs is for a person, who has no use for a library's warnings.
    """
    return partial(configure, **(_given or {"level": "error", "style": "console"}))


def _is_ours_or_warns(record: logging.LogRecord) -> bool:
    """Keep debug lines of libraries out, of those too that set a level of their own at their import, as torch does."""
    return record.levelno >= logging.WARNING or record.name == _SERVER or record.name.partition(".")[0] in _OURS


def _call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
    """Send a line to the handler of ``configure``, and to none that a library adds for the terminal.

    Libraries such as torch and transformers bring handlers that write to standard error, and keep their lines from the
    root logger. Most bring them at their import, before or after ``configure``, so this takes the place of
    ``logging.Logger.callHandlers`` for all loggers.
    """
    current: logging.Logger | None = self
    while current is not None:
        for handler in current.handlers:
            to_terminal = isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
            if record.levelno >= handler.level and (current.parent is None or not to_terminal):
                handler.handle(record)
        current = current.parent


class _SecretFreeFormatter(structlog.stdlib.ProcessorFormatter):
    """Formatter that removes secrets from the finished line, whatever part of the event they came in with."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            line = super().format(record)
        except Exception as error:  # a library's arguments may not fit its message, or a value has no repr
            place = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
            broken = f"a line of {record.filename}:{record.lineno} cannot be shown: {describe_failure(error)}"
            line = super().format(logging.makeLogRecord({**place, "msg": broken}))
        # Of what is ASCII, JSON leaves DEL alone as it is.
        return hide_secrets(line).replace("\x7f", "\\u007f")


def _remove_colours(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Remove the colours of libraries that take every log for a terminal, as the HTTP server and vLLM do."""
    event.pop("color_message", None)
    if isinstance(event.get("event"), str):
        event["event"] = _COLOUR.sub("", event["event"])
    return event


def _hide_named_secrets(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key, value in event.items():
        event[key] = _without_named_secrets(key, value)
    return event


def _without_named_secrets(key: object, value: Any) -> Any:
    if isinstance(value, bool | int | float) or value is None:
        return value
    if SECRET_NAME.search(str(key)):
        return HIDDEN
    if isinstance(value, Mapping):
        return {name: _without_named_secrets(name, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_named_secrets(key, part) for part in value]
    return value


def _exception_of(event: structlog.typing.EventDict) -> BaseException | None:
    """Remove the exception from the event and return it."""
    given = event.pop("exc_info", None)
    if isinstance(given, BaseException):
        return given
    if isinstance(given, tuple):
        error: BaseException | None = given[1]
        return error
    return sys.exc_info()[1] if given else None


def _render_exception_for_json(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if (error := _exception_of(event)) is not None:
        event["exception"] = traceback_of(error)
    return event


def _render_exception_for_people(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if (error := _exception_of(event)) is not None:
        event["exception"] = format_traceback(error)
    return event


def _make_visible(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Make every value printable; a traceback keeps its lines."""
    shown = {}
    for key, value in event.items():
        text = value if isinstance(value, str) else repr(value)
        shown[visible(key)] = visible_lines(text) if key in ("exception", "stack") else visible(text)
    return shown


def _hide_arguments(record: logging.LogRecord) -> bool:
    """Remove data from asyncio's messages, as in ``Exception in callback send('private prompt') at file.py:3``."""
    record.msg, record.args = _EXCEPTION.sub("exception=...", _ARGUMENTS.sub(r"\1(...)", record.getMessage())), ()
    return True


def _log_uncaught(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        log.warning("interrupted", exc_info=error)
        return
    log.critical("the process ends with an exception", exc_info=error)


def _log_uncaught_in_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
        name = failed.thread.name if failed.thread is not None else None
        log.error("a thread ended with an exception", thread=name, exc_info=failed.exc_value)


def _log_unraisable(failed: sys.UnraisableHookArgs) -> None:
    """Log an exception that cannot be raised, as one of a finaliser."""
    if failed.exc_value is not None:
        log.error("an exception was ignored", exc_info=failed.exc_value)


def _log_printed(limit: int | None = None, file: Any = None, chain: bool = True) -> None:
    """Log an exception that a library prints, as ``multiprocessing`` does when a child fails; in place of
    ``traceback.print_exc``."""
    if file is not None:
        _print_exc(limit, file, chain)
    elif sys.exc_info()[1] is not None:
        log.error("an exception was printed", exc_info=True)


def _log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
) -> None:
    """Log a warning of Python's module ``warnings``; in place of ``warnings.showwarning``."""
    log.warning("a library warns", warning=describe_warning(message, category, filename), place=f"{filename}:{lineno}")
