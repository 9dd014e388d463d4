"""Small service as a process of its own, for tests of limits over real sockets: ``python -m`` this file."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI
from mor_core import process
from mor_core.auth import Principal, Scope, hash_token, require
from mor_core.json_route import LargeRoute
from mor_core.service import create_service, serve
from mor_core.settings import ServiceSettings
from mor_core.wire import ScoreRequest

TOKEN = "a-token-of-the-service"
CLIENT = "a-token-of-one-client"
_Caller = Annotated[Principal, Depends(require(Scope.service, Scope.client))]
START_S = 60.0


class Work:
    """Requests that are being worked on, and those that ended early."""

    running = 0
    cancelled = 0


def app(settings: ServiceSettings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    service = create_service("limited", settings, lifespan, {}, version="1")
    large = APIRouter(route_class=LargeRoute)

    @large.post("/score")
    async def score(body: ScoreRequest, _: _Caller) -> int:
        return len(body.items)

    @large.post("/work")
    async def work(body: list[float], _: _Caller) -> float:
        Work.running += 1
        try:
            await asyncio.sleep(body[0])
        except asyncio.CancelledError:
            Work.cancelled += 1
            raise
        finally:
            Work.running -= 1
        return body[0]

    service.include_router(large)

    @service.post("/small")
    async def small(body: dict[str, int], _: _Caller) -> int:
        return len(body)

    @service.get("/seen")
    async def seen(_: _Caller) -> dict[str, int]:
        return {"running": Work.running, "cancelled": Work.cancelled}

    @service.get("/long")
    async def long(_: _Caller) -> str:
        return "x" * (64 << 20)

    return service


class Process:
    """Running service."""

    def __init__(self, address: str, pid: int) -> None:
        self.address = address
        self.port = int(address.rpartition(":")[2])
        self.pid = pid

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def healthz_s(self) -> float:
        """Measure a call of ``/healthz`` on a connection of its own."""
        started = time.monotonic()
        with self.connect() as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        return time.monotonic() - started

    def peak_memory_mb(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def open_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())


@contextmanager
def running(folder: Path, log: int = subprocess.DEVNULL, **settings: object) -> Iterator[Process]:
    """Run the service in a process of its own until the body ends; its log goes to the open file ``log``."""
    tokens = folder / "tokens.json"
    rows = [f'{{"name": "{n}", "scope": "{n}", "sha256": "{hash_token(t)}"}}' for n, t in _TOKENS.items()]
    tokens.write_text(f"[{','.join(rows)}]")
    port_file = folder / "address"
    environment = {f"MOR_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.core.limited_service", str(port_file)],
        env=os.environ | {"MOR_LOG_LEVEL": "error"} | environment | {"MOR_TOKENS_FILE": str(tokens)},
        stderr=log,
    )
    try:
        deadline = time.monotonic() + START_S
        while not port_file.exists():
            assert process.poll() is None, "the service ended"
            assert time.monotonic() < deadline, "the service did not start"
            time.sleep(0.02)
        yield Process(port_file.read_text(), process.pid)
    finally:
        process.terminate()
        process.wait(timeout=20)


_TOKENS = {"service": TOKEN, "client": CLIENT}

if __name__ == "__main__":
    found = ServiceSettings()
    process.begin(found, "limited")
    serve(app(found), found, port_file=Path(sys.argv[1]))
