"""Append-only log of what was asked and answered, for the client itself: one line of JSON for each item.

A queue stands between answers and disk, so that no answer waits for the log. Lines that find no room, in the queue or
on the disk, are counted, and the next line that is written states how many are missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from mor_core.disk_full import watched
from mor_core.failures import describe_failure

from mor_reward.answers.answer_ledger import utc_day
from mor_reward.metrics import QUERY_LOG_LOST

PATTERN = "queries-*.jsonl"
LONGEST_LINE = 4 << 20
"""Longest line, bytes. One whose texts would make it longer goes without them."""
_MOST_WAITING_BYTES = 32 << 20
"""Lines that wait for the disk, in bytes: some ten thousand without texts, and several of the longest with them."""
_FILES = 16
"""Files among which the largest size is divided: as a file is full, the oldest goes."""
_PAUSE_S = 0.2
"""Pause before a write, seconds, in which further lines gather."""
_DAY_S = 86400

log = structlog.get_logger(__name__)


class QueryLog:
    """Log in a folder: files of a day, and of a bounded size."""

    def __init__(self, folder: Path, *, most_bytes: int, most_days: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._file_bytes = most_bytes // _FILES
        self._most_days = most_days
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._lost = 0

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add a line; it waits for its turn in memory.

        Long texts cost the line these alone, so that nobody keeps a question out of the log by its length.
        """
        line = _line(entry)
        if len(line) > LONGEST_LINE and "texts" in entry:
            line = _line({**entry, "texts": None})
        if self._waiting_bytes + len(line) > _MOST_WAITING_BYTES:
            self._lose(1)
            return
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self._arrived.set()

    async def run(self) -> None:
        """Write lines until ``close`` was called and none waits."""
        while not (self._closing and not self._waiting):
            await self._arrived.wait()
            if not self._closing:
                await asyncio.sleep(_PAUSE_S)
            self._arrived.clear()
            lines, self._waiting, self._waiting_bytes = self._waiting, [], 0
            lost = self._lost
            try:
                await asyncio.to_thread(self._write, lines, lost)
                self._lost -= lost
            except OSError as error:
                self._lose(len(lines))
                log.warning("the query log cannot be written", reason=describe_failure(error), lost_lines=self._lost)

    def close(self) -> None:
        """Have ``run`` write what waits, and return."""
        self._closing = True
        self._arrived.set()

    def _lose(self, lines: int) -> None:
        self._lost += lines
        QUERY_LOG_LOST.inc(lines)

    def _write(self, lines: Sequence[bytes], lost: int) -> None:
        if not lines and not lost:
            return
        now = time.time()
        at = datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat(timespec="seconds")
        stated = [_line({"at": at, "lost": lost})] if lost else []
        file = self._file(utc_day(now))
        with watched("query_log"):
            _append(file, b"".join([*stated, *lines]))
        self._prune(now, file)

    def _file(self, day: str) -> Path:
        """Return the file that takes the next lines: the day's last one, or a new one where that is full."""
        known = sorted(self._folder.glob(f"queries-{day}.*.jsonl"))
        number = int(known[-1].name.split(".")[1]) if known else 1
        if known and known[-1].stat().st_size >= self._file_bytes:
            number += 1
        return self._folder / f"queries-{day}.{number:05d}.jsonl"

    def _prune(self, now: float, current: Path) -> None:
        """Delete the oldest files over the bounds of age and size."""
        oldest = utc_day(now - (self._most_days - 1) * _DAY_S)
        files = sorted(self._folder.glob(PATTERN))
        total = sum(file.stat().st_size for file in files)
        for file in files:
            if file == current or (file.name >= f"queries-{oldest}" and total <= self._most_bytes):
                break
            total -= file.stat().st_size
            file.unlink()


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _append(file: Path, content: bytes) -> None:
    """Append whole lines, after what a killed process left of one. What a full disk cut off is removed again."""
    handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(handle).st_size
        cut_off = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        try:
            left = memoryview(b"\n" + content if cut_off else content)
            while left:
                left = left[os.write(handle, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)
