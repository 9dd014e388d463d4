"""Reward service that speaks HTTP byte by byte, so that a test can break the protocol itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

Attack = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]
"""Writes a response; receives the body of an honest one."""
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
"""Serves one connection."""


class RawEndpoint:
    """Reward service on loopback: honest without an ``attack``, which replaces its answers to score requests."""

    def __init__(self) -> None:
        self.attack: Attack | None = None
        self.url = ""
        self.requests: list[str] = []
        self.reads_bodies = True

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.requests.append(head)
                length = next((line for line in head.lower().split("\r\n") if line.startswith("content-length:")), ":0")
                if not self.reads_bodies and not head.startswith("GET"):
                    await asyncio.sleep(60)
                body = await reader.readexactly(int(length.split(":")[1]))
                content = json.dumps(_answer(body) if body else _CARD).encode()
                if self.attack is not None and body:
                    await self.attack(writer, content)
                else:
                    writer.write(response(content))
                await writer.drain()
        writer.close()


def response(content: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


_CARD = {
    "model": {"name": "raw", "version": "1"},
    "domains": "tests",
    "calibration": None,
    "privacy": None,
    "limits": {"items": 64, "responses": 64, "request_bytes": 64 << 20, "concurrency": 4},
}


def _answer(body: bytes) -> dict[str, Any]:
    items = [
        {"item_id": item["item_id"], "status": "ok", "scores": [float(i) for i in range(len(item["responses"]))]}
        for item in json.loads(body)["items"]
    ]
    return {"model": _CARD["model"], "items": items}


@contextlib.asynccontextmanager
async def serving(handle: Handle) -> AsyncIterator[int]:
    """Serve on a port of loopback until the body ends, and leave no connection open then."""
    connections: list[tuple[asyncio.Task[None], asyncio.StreamWriter]] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append((asyncio.create_task(handle(reader, writer)), writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task, writer in connections:
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*(task for task, _ in connections), return_exceptions=True)


@contextlib.asynccontextmanager
async def raw_endpoint() -> AsyncIterator[RawEndpoint]:
    """Serve a raw endpoint until the body ends."""
    endpoint = RawEndpoint()
    async with serving(endpoint.handle) as port:
        endpoint.url = f"http://127.0.0.1:{port}"
        yield endpoint
