"""Log of the exceptions in vLLM's processes, from which the service reports why its engine failed.

vLLM runs its engine in another process. When that fails, this process receives "See root cause above", and the root
cause is only in the other process's log. vLLM applies one logging configuration in all its processes, so a handler in
that configuration writes every exception that they log to one file, which this process reads. An exception may quote a
private prompt: the file lies in a folder that only the service's user may read, is bounded, and is removed with it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mor_core.failures import describe_failure, format_traceback, quote_failure
from mor_core.hidden_secrets import hide_secrets, remember_environment
from mor_core.printable import visible_lines

from mor_rollout.engines.vllm.native_libraries import with_advice

_MOST_BYTES = 1 << 20
"""Size at which the file takes no further exceptions, bytes: hundreds, and the first and the fatal one matter."""
_LONGEST = 4000
"""Longest message or exception in the file, characters: a line is written at once, so processes do not mix theirs."""
_FATAL = "fatal error"
"""Part of the message that vLLM logs when a running engine fails."""


class ErrorLog:
    """File of the exceptions that vLLM's processes log."""

    def __init__(self) -> None:
        self._folder: TemporaryDirectory[str] | None = None
        self._file: Path | None = None

    def open(self) -> Any:
        """Return vLLM's logging configuration with a handler that writes to the file; ``None`` if it logs nothing."""
        from vllm import envs
        from vllm.config.logging import LoggingConfig
        from vllm.logger import DEFAULT_LOGGING_CONFIG

        if not envs.VLLM_CONFIGURE_LOGGING:
            return None
        if envs.VLLM_LOGGING_CONFIG_PATH:
            config = json.loads(Path(envs.VLLM_LOGGING_CONFIG_PATH).read_text())
        else:
            config = copy.deepcopy(DEFAULT_LOGGING_CONFIG)
            config["handlers"]["vllm"] |= {"level": envs.VLLM_LOGGING_LEVEL, "stream": envs.VLLM_LOGGING_STREAM}
            config["handlers"]["vllm"]["formatter"] = "mor_lines"
            config["formatters"]["mor_lines"] = {
                "()": f"{__name__}.{LogFormatter.__name__}",
                "format": config["formatters"]["vllm"]["format"],
                "datefmt": config["formatters"]["vllm"]["datefmt"],
            }
            config["loggers"]["vllm"]["level"] = envs.VLLM_LOGGING_LEVEL
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
        config.setdefault("loggers", {}).setdefault("vllm", {}).setdefault("handlers", []).append("mor")
        path = Path(self._folder.name) / "logging.json"
        path.write_text(json.dumps(config))
        return LoggingConfig(pylogging_config_file=str(path))

    def start_failure(self) -> str | None:
        """Return the first exception: later ones, in processes that wait for the first, follow from it."""
        found = [exception for _, exception in self._entries()]
        return with_advice(found[0]) if found else None

    def fatal_error(self) -> str | None:
        """Return the exception that ended a running engine."""
        found = [exception for message, exception in self._entries() if _FATAL in message]
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


class LogFormatter(logging.Formatter):
    """Formatter of the log of vLLM's processes: as vLLM's, without secrets, control characters and private text.

    Those processes have no logs of MoR, so each also learns here what is secret.
    """

    def __init__(self, fmt: str, datefmt: str) -> None:
        super().__init__(fmt, datefmt, defaults={"vllm_process_name": "vLLM"})  # until vLLM gives the process a name
        remember_environment()
        logging.raiseExceptions = False  # else a handler that fails prints the line's arguments

    def format(self, record: logging.LogRecord) -> str:
        record.fileinfo = record.filename  # vLLM's own formatter adds it
        return visible_lines(hide_secrets(super().format(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return format_traceback(ei[1])


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
