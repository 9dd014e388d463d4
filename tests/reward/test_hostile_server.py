"""A router or run control of another organisation costs a client's commands bounded memory and time."""

from __future__ import annotations

import json
import resource
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from mor_core.errors import Invalid
from mor_reward import server_connection
from mor_reward.policy_pairs import write_pairs
from mor_reward.router_registration import deregister

_PART = bytes(1 << 20)
_ENDLESS = 2048
"""Megabytes that the server would send."""
_PACKED = 256
"""Megabytes in a packed response of one."""
_MORE_MB = 400
"""Memory that a refused response may take, of the bound of 128 MB and of parts that come packed."""


class HostileServer:
    """HTTP server that answers every request in one way."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    answer(self)
                except OSError:
                    self.close_connection = True

            do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Print nothing in tests."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def served() -> Iterator[Callable[[Callable[[BaseHTTPRequestHandler], None]], str]]:
    started: list[tuple[ThreadingHTTPServer, Thread]] = []

    def start(answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
        hostile = HostileServer(answer)
        thread = Thread(target=hostile.server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        started.append((hostile.server, thread))
        return hostile.url

    yield start
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(_ENDLESS):
        handler.wfile.write(_PART)


def packed(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    packer = zlib.compressobj(1, wbits=31)
    handler.wfile.write(b"".join(packer.compress(_PART) for _ in range(_PACKED)) + packer.flush())


def nested(handler: BaseHTTPRequestHandler) -> None:
    body = b'{"detail":' + 100_000 * b"["
    handler.send_response(422)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def slow(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")


Served = Callable[[Callable[[BaseHTTPRequestHandler], None]], str]


@pytest.mark.parametrize("answer", [endless, packed])
def test_a_response_without_end_is_not_kept(answer: Callable[..., None], served: Served, tmp_path: Path) -> None:
    address = served(answer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Invalid, match="returned more than"):
        write_pairs(address, "page", "r-1", tmp_path / "pairs.jsonl")
    with pytest.raises(Invalid, match="returned more than"):
        deregister(address, "page", name="st-mary", attempts=1)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < _MORE_MB
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_of_any_depth_is_a_refusal(served: Served) -> None:
    with pytest.raises(Invalid, match=r"refused the deregistration \(422\)"):
        deregister(served(nested), "page", name="st-mary", attempts=1)


def test_a_response_that_trickles_ends(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_connection, "_LONGEST_S", 0.2)
    monkeypatch.setattr(server_connection, "_MOST_BYTES", 1 << 40)
    with (
        server_connection.connection("--router", served(slow), "t", None) as http,
        pytest.raises(Invalid, match="took"),
    ):
        server_connection.exchange(http, "GET", "/", most_bytes=1 << 40)


def test_pictures_without_number_are_not_fetched(served: Served, tmp_path: Path) -> None:
    group = {
        "step": 1, "group_id": "g", "prompt_id": "q", "domain": None, "prompt": "user: ?", "weights_version": 1,
        "gate_version": 1, "fusion": "weighted", "responses": ["a", "b"], "rewards": None, "advantages": None,
        "clients": [], "images": [f"{number:064x}" for number in range(200_000)],
    }  # fmt: skip

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(json.dumps({"run": "r-1", "samples": [group]}).encode())

    with pytest.raises(Invalid, match="200000 pictures"):
        write_pairs(served(answer), "page", "r-1", tmp_path / "pairs.jsonl")
    assert list(tmp_path.iterdir()) == []
