"""Logs of vLLM's processes: all lines, and a file of exceptions from which the service reports why its engine failed.

vLLM runs its engine in another process. When that fails, this process receives "See root cause above", and the root
cause is only in the other process's log. vLLM applies one logging configuration in all its processes, so a handler in
that configuration writes every exception that they log to one file, which this process reads. An exception may quote a
private prompt: the file lies in a folder that only the service's user may read, is bounded, and is removed with it.
Another handler has whatever these processes write take the form of MoR's logs: lines of all libraries, uncaught
exceptions, and the traceback that ``multiprocessing`` prints at the end of one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import re
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mor_core import logs
from mor_core.failures import describe_failure, quote_failure

from mor_rollout.engines.vllm.native_libraries import with_advice

_MOST_BYTES = 1 << 20
"""Size at which the file takes no further exceptions, bytes: hundreds, and the first and the fatal one matter."""
_LONGEST = 4000
"""Longest message or exception in the file, characters: a line is written at once, so processes do not mix theirs."""
_FATAL = "fatal error"
"""Part of the message that vLLM logs when a running engine fails."""
_ELSEWHERE = re.compile(r"root cause", re.IGNORECASE)
"""Phrase of messages that point to another process's output instead of stating a reason."""
_END = re.compile(r"'([\w.-]+)': (-?\d+)")
"""Process and exit status in such a message."""
_CURES = {
    -signal.SIGKILL: "memory ran out, most often: give the service more, or set a smaller MOR_KV_CACHE_BYTES",
    -signal.SIGILL: "this CPU lacks an instruction of vLLM's kernels: set MOR_BACKEND=transformers",
}
"""Exit status of a process that stated no reason -> what to do."""


class ErrorLog:
    """File of the exceptions that vLLM's processes log, whose other lines have ``level`` and ``style``."""

    def __init__(self, level: logs.Level, style: logs.Style) -> None:
        self._level = level
        self._style = style
        self._folder: TemporaryDirectory[str] | None = None
        self._file: Path | None = None

    def open(self) -> Any:
        """Return vLLM's logging configuration, with handlers of MoR for all its processes."""
        from vllm import envs
        from vllm.config.logging import LoggingConfig

        level = envs.VLLM_LOGGING_LEVEL if envs.VLLM_CONFIGURE_LOGGING else "CRITICAL"
        config: dict[str, Any] = {
            "version": 1,
            "disable_existing_loggers": False,
            "loggers": {"vllm": {"level": level}},
        }
        if envs.VLLM_LOGGING_CONFIG_PATH:
            config = json.loads(Path(envs.VLLM_LOGGING_CONFIG_PATH).read_text())
        self._folder = TemporaryDirectory(prefix="mor-vllm-")
        self._file = Path(self._folder.name) / "errors.jsonl"
        config.setdefault("formatters", {})["mor"] = {"()": f"{__name__}.{ExceptionFormatter.__name__}"}
        config.setdefault("filters", {})["mor"] = {
            "()": f"{__name__}.{ExceptionFilter.__name__}",
            "file": str(self._file),
        }
        config.setdefault("handlers", {})["mor"] = {
            "class": "logging.FileHandler",
            "filename": str(self._file),
            "level": "ERROR",
            "filters": ["mor"],
            "formatter": "mor",
            "delay": True,
        }
        config["handlers"]["mor_logs"] = {
            "()": f"{__name__}.{begin_logs.__name__}",
            "log_level": self._level,
            "log_format": self._style,
        }
        config.setdefault("loggers", {}).setdefault("vllm", {}).setdefault("handlers", []).append("mor")
        path = Path(self._folder.name) / "logging.json"
        path.write_text(json.dumps(config))
        return LoggingConfig(configure_logging=True, pylogging_config_file=str(path))

    def start_failure(self) -> str | None:
        """Return the first exception with a reason; later ones, in processes that wait for it, follow from it."""
        found = [exception for _, exception in self._entries() if not _ELSEWHERE.search(exception)]
        return with_advice(found[0]) if found else None

    def fatal_error(self) -> str | None:
        """Return the exception that ended a running engine."""
        found = [text for message, text in self._entries() if _FATAL in message and not _ELSEWHERE.search(text)]
        return with_advice(found[-1]) if found else None

    def _entries(self) -> list[tuple[str, str]]:
        if self._file is None or not self._file.is_file():
            return []
        entries = []
        for line in self._file.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a process may have died while it wrote the line
                entry = json.loads(line)
                entries.append((entry["message"], entry["exception"]))
        return entries

    def close(self) -> None:
        """Remove the file, and the handler that writes to it in this process."""
        logger = logging.getLogger("vllm")
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler) and handler.baseFilename == str(self._file):
                logger.removeHandler(handler)
                handler.close()
        if self._folder is not None:
            self._folder.cleanup()


class ExceptionFilter(logging.Filter):
    """Filter that passes records with an exception, while the file has room or the exception is the fatal one."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = Path(file)

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.exc_info or record.exc_info[1] is None:
            return False
        full = self._file.is_file() and self._file.stat().st_size >= _MOST_BYTES
        return not full or _FATAL in record.getMessage()


def begin_logs(log_level: logs.Level, log_format: logs.Style) -> logging.Handler:
    """Set up MoR's logs in a process that vLLM started, where this is the first code of MoR that runs."""
    if multiprocessing.parent_process() is not None:
        logs.configure(log_level, log_format, service="rollout", process=multiprocessing.current_process().name)
    return logging.NullHandler()


class ExceptionFormatter(logging.Formatter):
    """Formatter that writes a record's message and exception as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        message = record.getMessage()[:_LONGEST]
        # At its start an engine has no prompt that an exception could quote.
        described = None if error is None else describe_chain(error, quoting=_FATAL not in message)[:_LONGEST]
        return json.dumps({"message": message, "exception": described})


def describe_chain(error: BaseException, *, quoting: bool = True) -> str:
    """Describe an exception and its explicit causes, the root cause last; ``quoting`` keeps messages with data."""
    described = quote_failure(error) if quoting else describe_failure(error)
    if error.__cause__ is None:
        return described
    return f"{described}; caused by {describe_chain(error.__cause__, quoting=quoting)}"


def stated(cause: str) -> str:
    """Return a cause in words of its own: one that only points to another process names that process's end instead."""
    if not _ELSEWHERE.search(cause):
        return cause
    ends = {name: int(status) for name, status in _END.findall(cause)}
    how = ", ".join(f"{name}: {_how(status)}" for name, status in ends.items())
    cures = [_CURES[status] for status in ends.values() if status in _CURES]
    cure = cures[0] if cures else "what it printed is in this service's log, before this line"
    return f"a process of vLLM ended and stated no reason{f' ({how})' if how else ''}; {cure}"


def _how(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-status).name}"
    return f"killed by signal {-status}"
