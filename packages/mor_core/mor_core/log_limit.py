"""Limit on repeated log lines: whoever provokes errors, with or without a token, fills no disk and hides no other line.

The first warnings or errors of one kind in a minute are written; at its end one line says how many more there were.
Lines of level info and below follow the service's own work and are not limited, nor is the audit log.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

_MOST_LINES = 60
"""Lines of one kind in a window: enough to see what happens; a traceback each takes about 300 kB."""
_WINDOW_S = 60.0
_MOST_KINDS = 1000
"""Kinds that are remembered: several times the places in the code that log."""
_AUDIT = "audit"
"""Logger of the audit log where it has no file; each of its lines counts."""
_SUBJECTS = ("client", "run")
"""Fields whose values are a part of the kind: a client that fails without end hides no other one's failure. Both are
names that somebody with a token has registered."""
_SHOWN = 200
"""Characters of a line that the count repeats."""

log = structlog.get_logger(__name__)


@dataclass
class _Window:
    began: float
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Numbers of the lines of this kind since then: an iterator counts right without a lock, which a fork may keep."""
    lines: int = 0


class LogLimit(logging.Filter):
    """Filter of a handler. A kind is a logger, a level and an event's text with the client or run that it is about, or
    the place that a library logs from."""

    def __init__(self, *, most_lines: int = _MOST_LINES, window_s: float = _WINDOW_S) -> None:
        super().__init__()
        self._most_lines = most_lines
        self._window_s = window_s
        self._windows: OrderedDict[Hashable, _Window] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or record.name == _AUDIT:
            return True
        kind = _kind(record)
        now = time.monotonic()
        window = self._windows.get(kind)
        if window is None or now >= window.began + self._window_s:
            window = self._windows[kind] = _Window(now)
            self._windows.move_to_end(kind)
            if len(self._windows) > _MOST_KINDS:
                self._windows.popitem(last=False)
        window.lines = number = next(window.numbers)
        if number == self._most_lines + 1:
            self._report_later(record, window)
        return number <= self._most_lines

    def _report_later(self, record: logging.LogRecord, window: _Window) -> None:
        ours = record.msg if isinstance(record.msg, dict) else {"event": record.msg}
        event, about = ours.get("event", ""), {key: ours[key] for key in _SUBJECTS if key in ours}
        name, text = record.name, str(event)[:_SHOWN]  # a library's text, without the values that it is filled with

        def report() -> None:
            left_out = window.lines - self._most_lines
            log.warning(
                "lines of the log were left out", of=name, line=text, lines=left_out, seconds=self._window_s, **about
            )

        timer = threading.Timer(self._window_s, report)
        timer.daemon = True
        with suppress(RuntimeError):  # the process ends and begins no more threads
            timer.start()


def _kind(record: logging.LogRecord) -> Hashable:
    if isinstance(record.msg, dict):
        about = (str(record.msg.get(name, ""))[:_SHOWN] for name in _SUBJECTS)
        return record.name, record.levelno, str(record.msg.get("event", ""))[:_SHOWN], *about
    return record.name, record.levelno, record.pathname, record.lineno
