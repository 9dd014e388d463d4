"""Callers without a token fill no log: lines of one kind are limited, and those left out are counted."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
import structlog
from mor_core.log_limit import _MOST_LINES, LogLimit

from tests.certificates import self_signed
from tests.core.limited_service import running
from tests.secrecy.marks import lines, logged

ATTEMPTS = 4 * _MOST_LINES
GARBAGE = {
    "no HTTP": b"\x16\x03\x01 nothing of a request\r\n\r\n",
    "two lengths": b"POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a long head": b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 40_000 + b"\r\n\r\n",
    "no token": b"POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    "a wrong token": b"GET /seen HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer of-nobody\r\nConnection: close\r\n\r\n",
    "too much": b"POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n",
    "no route": b"GET /nowhere\x7f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("encrypted", [False, True], ids=["http", "https"])
def test_whatever_a_caller_without_a_token_sends_the_log_stays_short(tmp_path: Path, encrypted: bool) -> None:
    settings: dict[str, object] = {"log_level": "info"}
    if encrypted:
        for name, content in zip(("cert", "key"), self_signed(), strict=True):
            (tmp_path / name).write_bytes(content)
            settings[f"tls_{name}_file"] = tmp_path / name
    with (tmp_path / "log").open("w+b") as log, running(tmp_path, log.fileno(), **settings) as service:
        before = len((tmp_path / "log").read_bytes().splitlines())
        for sent in GARBAGE.values():
            for _ in range(ATTEMPTS):
                with suppress(ConnectionError), closing(service.connect()) as connection:
                    connection.sendall(sent)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
        written = (tmp_path / "log").read_text()
    assert len(written.splitlines()) - before <= 2 * _MOST_LINES, written[-2000:]


def test_lines_that_are_left_out_are_counted() -> None:
    with logged() as buffer:
        (handler,) = logging.getLogger().handlers
        handler.filters = [LogLimit(most_lines=3, window_s=0.3)]
        for number in range(10):
            structlog.get_logger("mor.test_log_limit").warning("ours", number=number)
            logging.getLogger("library").error("a library says %s", number)
        structlog.get_logger("mor.test_log_limit").info("a line of the service's own work")
        structlog.get_logger("audit").warning("enrol")
        until = time.monotonic() + 5
        while buffer.getvalue().count("left out") < 2 and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.05)
        structlog.get_logger("mor.test_log_limit").warning("ours", number="after the window")
    found = lines(buffer)
    assert [line["event"] for line in found].count("ours") == 4
    assert [line["event"] for line in found].count("a library says 9") == 0
    counts = [(line["of"], line["line"], line["lines"]) for line in found if "left out" in line["event"]]
    assert sorted(counts) == [("library", "a library says %s", 7), ("mor.test_log_limit", "ours", 7)]


def test_the_audit_log_and_the_services_own_work_are_not_limited() -> None:
    with logged() as buffer:
        for number in range(3 * _MOST_LINES):
            structlog.get_logger("audit").warning("enrol", number=number)
            structlog.get_logger("mor").info("step", number=number)
    assert len(lines(buffer)) == 6 * _MOST_LINES


def test_one_client_or_run_hides_no_other_one() -> None:
    with logged() as buffer:
        (handler,) = logging.getLogger().handlers
        handler.filters = [LogLimit(most_lines=3)]
        log = structlog.get_logger("mor.test_log_limit")
        for _ in range(10):
            log.warning("a probe failed", client="mallory")
            log.error("a batch failed", run="broken")
        log.warning("a probe failed", client="st-mary")
        log.error("a batch failed", run="sound")
    written = lines(buffer)
    assert [line.get("client", line.get("run")) for line in written[-2:]] == ["st-mary", "sound"]
    assert len(written) == 8
