"""A short campaign, and the plan and proxy behind it. ``make chaos`` runs the long one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from tests.chaos.faults import plan
from tests.chaos.link_proxy import Link, ProxyLoop
from tests.ports import free_port

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_twenty_faults_lose_nothing(tmp_path: Path) -> None:
    report = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "tests.chaos", "--seeds", "1", "--first-seed", "399", "--faults", "20"]
    command += ["--steps", "8", "--workers", "2", "--overlap", "--out", str(report), "--logs", str(tmp_path / "logs")]
    path = os.pathsep.join([str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=870,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    found = json.loads(report.read_text())
    assert (found["faults"], found["problems"]) == (20, 0)
    assert found["groups"] >= 8 * 2


def test_a_seed_gives_the_same_faults_and_goes_through_every_kind() -> None:
    first, again = ([(f.kind, f.seconds, f.pick) for f in plan(3, 200)] for _ in range(2))
    assert first == again
    assert first != [(f.kind, f.seconds, f.pick) for f in plan(4, 200)]
    counts = Counter(kind for kind, _, _ in first)
    assert max(counts.values()) <= 2 * min(counts.values()) + 6
    assert {f.kind for f in plan(3, 10, only="Clock")} == {"Clock skewed", "Clock jumps"}


class _Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b'{"a":1}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        del arguments


@pytest.fixture
def link() -> Iterator[Link]:
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        loop = ProxyLoop()
        link = Link(loop, "test", free_port(), server.server_port)
        yield link
        link.close()
        loop.close()
        server.shutdown()


def test_a_link_breaks_as_networks_do_and_works_again(link: Link) -> None:
    url = f"http://127.0.0.1:{link.port}/"

    def get() -> str:
        return httpx.get(url, timeout=0.4).text

    assert get() == '{"a":1}'
    for mode, error in (("refuse", httpx.ConnectError), ("hang", httpx.ReadTimeout), ("one_way", httpx.ReadTimeout)):
        link.set(mode)
        with pytest.raises(error):
            get()
    link.set("newer")
    assert get() == '{"field_of_a_newer_release":1,"a":1}'
    link.set("garbled")
    assert get().startswith("<html>")
    link.set("slow")
    began = time.monotonic()
    assert httpx.get(url, timeout=5).text == '{"a":1}'
    assert time.monotonic() - began > 0.25
    link.set("pass")
    assert get() == '{"a":1}'


def test_a_half_open_connection_stays_silent_and_a_cut_one_is_reset(link: Link) -> None:
    def connect() -> socket.socket:
        near = socket.create_connection(("127.0.0.1", link.port), timeout=0.4)
        near.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = near.recv(4096)
        while not answer.endswith(b'{"a":1}'):  # the headers may come alone
            answer += near.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        return near

    with connect() as near:
        link.set("half_open")
        near.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(TimeoutError):
            near.recv(4096)
        with connect() as other:
            link.set("cut")
            with pytest.raises(ConnectionResetError):
                while other.recv(4096):  # the rest of the answer may come first
                    pass
