"""The audit log keeps its lines: through a full disk, and where its file is moved away."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mor_core import disk_full
from mor_router.audit import AuditLog
from prometheus_client import REGISTRY

from tests.small_files import largest_file

_SIZE = 1 << 20
"""Bytes: more than the files that pytest writes meanwhile."""


def large(folder: Path) -> Path:
    """Return a file with many empty lines."""
    file = folder / "audit.jsonl"
    file.write_bytes(b"\n" * _SIZE)
    return file


def subjects(file: Path) -> list[str]:
    """Return the subjects of the whole lines."""
    found = []
    for line in file.read_text().splitlines():
        if line.endswith("}"):
            found.append(json.loads(line)["subject"])
    return found


def test_lines_that_find_no_room_wait(tmp_path: Path) -> None:
    file = large(tmp_path)
    log = AuditLog(file)
    log.record("enrol", "first", "ops")
    with largest_file(file.stat().st_size + 10):  # a part of a line fits
        log.record("enrol", "second", "ops")
        log.record("enrol", "third", "ops")
        assert subjects(file) == ["first"]
        assert REGISTRY.get_sample_value("mor_disk_full", {"writer": "audit log"}) == 1
    log.record("enrol", "fourth", "ops")
    assert subjects(file) == ["first", "second", "third", "fourth"]
    assert REGISTRY.get_sample_value("mor_disk_full", {"writer": "audit log"}) == 0


def test_they_are_written_without_a_further_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_full, "RETRY_S", 0.05)
    log = AuditLog(large(tmp_path))
    with largest_file(_SIZE):
        log.record("enrol", "only", "ops")
    deadline = time.monotonic() + 10
    while not subjects(tmp_path / "audit.jsonl"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_file_that_is_moved_away_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    log = AuditLog(file)
    log.record("enrol", "before", "ops")
    file.rename(tmp_path / "audit.jsonl.1")
    log.record("enrol", "after", "ops")
    assert subjects(file) == ["after"]
