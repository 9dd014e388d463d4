"""Measurement of what hostile requests cost others: a router's own answers, its memory, and another caller's requests.

``python bench/hostile_requests.py`` writes ``bench/results/hostile-requests.json``. A real router with a real Valkey
gets, over loopback: a body of 63 MB without a token; twelve pictures of 64 megapixels in 70 kB each, and 57 MB of text,
with a token and from a caller that hangs up after half a second.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from cryptography.fernet import Fernet
from machine import end_children_on_sigterm, record
from mor_core import bundled_valkey
from mor_core.auth import hash_token
from mor_core.images import sha256
from PIL import Image

sys.path.append(str(Path(__file__).parent.parent))

from tests.router.endpoints import TOKEN, Endpoints

_TOKENS = {"hostile": "token-of-the-hostile-one", "honest": "token-of-the-honest-one", "admin": "token-of-the-admin"}
_PORT = 6398
"""Port of the queue server; not the default one, which may be in use."""
_HANG_UP_S = 0.5
_QUIET_S = 2.0
"""Time after the attack in which answers must be as fast as ever, before the measurement ends."""
_LONGEST_S = 180.0


@contextmanager
def router(folder: Path) -> Iterator[tuple[str, int]]:
    """Run a router as a process; yield its address and process id."""
    tokens = [
        {"name": name, "scope": "admin" if name == "admin" else "service", "sha256": hash_token(token)}
        for name, token in _TOKENS.items()
    ]
    (folder / "tokens.json").write_text(json.dumps(tokens))
    (folder / "valkey").mkdir()
    valkey = subprocess.Popen(
        [str(bundled_valkey.server_binary()), *bundled_valkey.arguments(_PORT, folder / "valkey")],
        stdout=subprocess.DEVNULL,
    )
    environment = {
        "MOR_REDIS_URL": f"redis://127.0.0.1:{_PORT}/0",
        "MOR_TOKENS_FILE": str(folder / "tokens.json"),
        "MOR_SECRET_KEY": Fernet.generate_key().decode(),
        "MOR_ALLOW_LOOPBACK": "true",
        "MOR_WORKER": "false",
        "MOR_LOG_LEVEL": "error",
    }
    port_file = folder / "address"
    service = subprocess.Popen(
        [str(Path(sys.executable).parent / "mor-router"), "serve", "--port-file", str(port_file)],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (port_file.exists() and httpx.get(f"{port_file.read_text()}/readyz").is_success):
            if service.poll() is not None:
                raise SystemExit("the router ended at its start")
            time.sleep(0.1)
        yield port_file.read_text(), service.pid
    finally:
        for process in (service, valkey):
            process.terminate()
            process.wait(timeout=60)


def send(address: str, path: str, body: bytes, token: str | None, hang_up_s: float | None) -> dict[str, Any]:
    """Send a request and hang up after a while, or wait for the answer; return its status and the bytes sent."""
    host, port = address.removeprefix("http://").split(":")
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n{authorization}"
    sent, got = 0, b""
    with socket.create_connection((host, int(port)), timeout=_LONGEST_S) as connection:
        try:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            while sent < len(body):
                sent += connection.send(body[sent : sent + (1 << 20)])
        except OSError:
            pass
        try:
            connection.settimeout(hang_up_s or _LONGEST_S)
            got = connection.recv(65536)
        except OSError:
            pass
    return {"status": int(got.split()[1]) if got else None, "megabytes_sent": round(sent / 1e6, 1)}


def slowest(call: Callable[[], None], attack: Callable[[], dict[str, Any]]) -> tuple[float, dict[str, Any]]:
    """Call again and again during an attack and for a while after it; return the slowest call in seconds."""
    outcome: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: outcome.update(attack()))
    thread.start()
    worst, quiet_since = 0.0, time.monotonic()
    while thread.is_alive() or time.monotonic() - quiet_since < _QUIET_S:
        started = time.monotonic()
        call()
        took = time.monotonic() - started
        worst = max(worst, took)
        if thread.is_alive() or took > 1:
            quiet_since = time.monotonic()
        time.sleep(0.02)
    return worst, outcome


def bodies() -> dict[str, tuple[bytes, str | None, float | None]]:
    """Return each attack's body, token, and seconds until its sender hangs up."""
    picture = io.BytesIO()
    Image.new("L", (8000, 8000)).save(picture, "PNG")
    pictures = [picture.getvalue() + bytes([number]) for number in range(12)]
    images = {sha256(content): base64.b64encode(content).decode() for content in pictures}
    shown = [{"type": "image_url", "image_url": {"url": f"sha256:{digest}"}} for digest in images]
    text = "some more words " * (57_000_000 // 16)
    hostile = _TOKENS["hostile"]
    return {
        "63 MB without a token": (b'{"items":[' + b"{}," * (63_000_000 // 3) + b"{}]}", None, None),
        "12 pictures": (
            json.dumps({"messages": [{"role": "user", "content": shown}], "images": images}).encode(),
            hostile,
            _HANG_UP_S,
        ),
        "57 MB of text": (
            json.dumps({"messages": [{"role": "user", "content": text}]}).encode(),
            hostile,
            _HANG_UP_S,
        ),
    }


def measure(address: str, pid: int, body: bytes, token: str | None, hang_up_s: float | None) -> dict[str, Any]:
    with httpx.Client(base_url=address, timeout=_LONGEST_S) as http:

        def health() -> None:
            http.get("/healthz").raise_for_status()

        number = iter(range(1 << 30))

        def route() -> None:
            asked = {
                "messages": [{"role": "user", "content": f"How many bars are there? {time.time()} {next(number)}"}]
            }
            http.post(
                "/v1/route", json=asked, headers={"Authorization": f"Bearer {_TOKENS['honest']}"}
            ).raise_for_status()

        health_s, outcome = slowest(health, lambda: send(address, "/v1/route", body, token, hang_up_s))
        route_s, _ = slowest(route, lambda: send(address, "/v1/route", body, token, hang_up_s))
    peak = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    return {
        "slowest_healthz_s": round(health_s, 2),
        "slowest_route_of_another_s": round(route_s, 2),
        "peak_memory_mb": int(peak) // 1024,
        **outcome,
    }


def main() -> None:
    end_children_on_sigterm()
    found = {}
    endpoints = Endpoints()
    for name, attack in bodies().items():
        with tempfile.TemporaryDirectory(prefix="mor-bench-") as folder, router(Path(folder)) as (address, pid):
            body = {"name": "one", "url": endpoints.endpoint("one").url, "domains": "bars", "token": TOKEN}
            headers = {"Authorization": f"Bearer {_TOKENS['admin']}"}
            enrolled = httpx.post(
                f"{address}/v1/clients", json={**body, "state": "active"}, headers=headers, timeout=60
            )
            enrolled.raise_for_status()
            found[name] = measure(address, pid, *attack)
            print(name, found[name], flush=True)
    endpoints.stop()
    print(record("hostile-requests", {"attacks": found}))


if __name__ == "__main__":
    main()
