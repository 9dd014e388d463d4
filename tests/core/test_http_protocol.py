"""A caller that is slow, silent, endless or everywhere loses its own connections and nothing else."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
from mor_core import http_protocol
from mor_core.openapi import PARSER_STATUSES
from mor_core.settings import ServiceSettings

from tests.core import limited_service
from tests.core.limited_service import CLIENT, TOKEN, Process, running
from tests.security.headers import EXPECTED

HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
AUTHORIZED = HEAD + b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
PROMPT_S = 1.0
"""Longest that ``/healthz`` may take on a busy machine while somebody attacks."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    limits = {
        "head_timeout_s": 1.0,
        "body_timeout_s": 1.5,
        "idle_timeout_s": 1,
        "write_timeout_s": 1.0,
        "max_connections": 60,
        "max_connections_per_address": 60,
    }
    with running(tmp_path_factory.mktemp("service"), **limits) as process:
        yield process


def answer(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    got = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            got += part
    return got


def pour(connection: socket.socket, most: int) -> int:
    """Send chunks of a body without an end, and return the bytes sent until the server closed."""
    sent = 0
    with suppress(OSError):
        while sent < most:
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536
    return sent


@pytest.mark.parametrize("path", ["/score", "/small", "/healthz", "/nowhere"])
def test_an_endless_body_without_a_token_is_not_read(service: Process, path: str) -> None:
    before = service.peak_memory_mb()
    with closing(service.connect()) as connection:
        connection.sendall(HEAD.replace(b"/score", path.encode()) + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = pour(connection, 64 << 20)
    # What the kernel buffers on both sides of loopback, and no more.
    assert sent < 16 << 20
    assert service.peak_memory_mb() - before < 16


def test_a_caller_that_waits_for_100_continue_gets_401_instead(service: Process) -> None:
    with closing(service.connect()) as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n")
        got = answer(connection)
    assert got.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in got.lower()


def test_a_slow_body_without_a_token_gets_401_before_its_end(service: Process) -> None:
    with closing(service.connect()) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n{")
        started = time.monotonic()
        assert answer(connection).startswith(b"HTTP/1.1 401 ")
        assert time.monotonic() - started < PROMPT_S


def test_a_body_that_takes_too_long_gets_408(service: Process) -> None:
    with closing(service.connect()) as connection:
        connection.sendall(AUTHORIZED + b"Content-Length: 1000000\r\n\r\n{")
        assert answer(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % i for i in range(101)) + b"\r\n", b"431"),
        (b"GET /healthz?" + b"a&" * 100 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"422"),
        (b"GET / HTTP/1.1\r\nX", b"408"),
        (b"NONSENSE\r\n\r\n", b"400"),
    ],
)
def test_a_head_over_a_limit_is_refused(service: Process, head: bytes, status: bytes) -> None:
    with closing(service.connect()) as connection:
        connection.sendall(head)
        got = answer(connection).lower()
    assert got.startswith(b"http/1.1 " + status)
    assert all(f"{name}: {value}\r\n".encode() in got for name, value in EXPECTED.items())


def test_every_refusal_of_the_parser_is_in_the_document_of_every_route(service: Process) -> None:
    source = Path(http_protocol.__file__).read_text()
    raised = {HTTPStatus[name].value for name in re.findall(r"HTTPStatus\.([A-Z_]+)", source)}
    assert raised == set(PARSER_STATUSES)
    document = limited_service.app(ServiceSettings()).openapi()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) >= 6
    for operation in operations:
        for status in PARSER_STATUSES:
            assert "text/plain" in operation["responses"][str(status)]["content"], operation["operationId"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/seen"])
@pytest.mark.parametrize(("header", "status"), [("Content-Length: 99999999", "413"), ("Content-Encoding: gzip", "415")])
def test_a_header_that_no_route_takes_gets_a_documented_answer(
    service: Process, path: str, header: str, status: str
) -> None:
    document = limited_service.app(ServiceSettings()).openapi()
    with closing(service.connect()) as connection:
        authorization = f"Authorization: Bearer {TOKEN}"
        lines = [f"GET {path} HTTP/1.1", "Host: x", authorization, "Connection: close", header]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        got = answer(connection).decode().lower()
    assert got.startswith(f"http/1.1 {status} ")
    assert "application/problem+json" in got
    assert "application/problem+json" in document["paths"][path]["get"]["responses"][status]["content"]


def test_a_connection_with_many_requests_before_their_responses_is_closed(service: Process) -> None:
    with closing(service.connect()) as connection:
        connection.sendall(b"GET /seen HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
        assert answer(connection).count(b"HTTP/1.1") < 50


def test_connections_without_a_request_are_closed(service: Process) -> None:
    with closing(service.connect()) as silent, closing(service.connect()) as used:
        used.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        started = time.monotonic()
        assert answer(silent) == b""
        assert b"alive" in answer(used)
        assert time.monotonic() - started < 4


def test_blank_lines_do_not_keep_a_connection_open(service: Process) -> None:
    with closing(service.connect()) as connection:
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.2):
                try:
                    connection.send(b"\r\n")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        started = time.monotonic()
        try:
            answer(connection)
            assert time.monotonic() - started < 4
        finally:
            stop.set()
            thread.join()


def test_slow_callers_by_the_hundred_do_not_stop_healthz(service: Process) -> None:
    """Twice as many connections as the service allows send a byte of their headers now and then."""
    with ExitStack() as stack:
        slow = [stack.enter_context(closing(service.connect())) for _ in range(120)]
        for connection in slow:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nX-")
        assert service.healthz_s() < PROMPT_S
        assert service.open_files() < 100
        for _ in range(6):
            time.sleep(0.25)
            for connection in slow:
                with suppress(OSError):
                    connection.send(b"a")
            assert service.healthz_s() < PROMPT_S
        # All of them are closed by now, some to make room and the others at the limit of time.
        assert service.open_files() < 30


def test_a_reader_that_takes_nothing_is_closed(service: Process) -> None:
    with closing(service.connect()) as connection:
        connection.sendall(b"GET /long HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n")
        time.sleep(2.5)
        got = answer(connection)
    assert got.startswith(b"HTTP/1.1 200 ")
    assert len(got) < 64 << 20


def test_websockets_and_compressed_bodies_are_refused(service: Process) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"}
    assert httpx.get(f"{service.address}/score", headers=upgrade).status_code == 405
    bearer = {"Authorization": f"Bearer {TOKEN}", "Content-Encoding": "gzip"}
    refused = httpx.post(f"{service.address}/small", content=b"{}", headers=bearer)
    assert refused.status_code == 415
    assert "without compression" in refused.json()["detail"]


def test_work_ends_when_its_caller_hangs_up(service: Process) -> None:
    def seen(key: str) -> int:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        found: int = httpx.get(f"{service.address}/seen", headers=bearer).json()[key]
        return found

    def eventually(key: str, wanted: int) -> None:
        deadline = time.monotonic() + 5
        while seen(key) != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with closing(service.connect()) as connection:
        connection.sendall(AUTHORIZED.replace(b"/score", b"/work") + b"Content-Length: 4\r\n\r\n[60]")
        eventually("running", 1)
    eventually("running", 0)
    assert seen("cancelled") == 1


def test_one_caller_cannot_take_every_request(tmp_path: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        running(tmp_path_factory.mktemp("busy"), max_requests=4) as busy,
        httpx.Client(base_url=busy.address, timeout=20) as http,
        ThreadPoolExecutor(8) as pool,
    ):

        def work(token: str, seconds: float) -> int:
            return http.post("/work", json=[seconds], headers={"Authorization": f"Bearer {token}"}).status_code

        greedy = [pool.submit(work, CLIENT, 1.0) for _ in range(6)]
        time.sleep(0.5)
        assert [work(TOKEN, 0.0) for _ in range(3)] == [200] * 3
        assert sorted(each.result() for each in greedy) == [200] * 4 + [503] * 2
        assert busy.healthz_s() < PROMPT_S
