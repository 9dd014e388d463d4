"""TCP proxy between two processes, which can break the link in the ways in which networks do."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Literal

from mor_core.tasks import stop

Mode = Literal["pass", "refuse", "hang", "one_way", "slow", "half_open", "cut", "newer", "garbled"]
"""State of a link.

- ``refuse``: connections are reset, new ones refused.
- ``hang``: nothing passes; it arrives once the link works again.
- ``one_way``: requests pass, answers do not.
- ``slow``: each piece waits.
- ``half_open``: the far side of each connection is gone, the near side does not hear of it; new connections work.
- ``cut``: each connection is reset; new ones work.
- ``newer``: JSON answers have a field that this release does not know.
- ``garbled``: answers are a page of HTML with status 200, as of a gateway that is in the way.
"""

_PIECE = 64 << 10
_SLOW_S = 0.15
"""Wait of each piece on a slow link, seconds."""
_CALL_S = 60.0
"""Longest change of a link, seconds, on a busy machine."""
_LENGTH = re.compile(rb"(?i)content-length: *(\d+)")
_PAGE = b"<html>Sign in to the guest network</html>"


class ProxyLoop:
    """Event loop of all links, on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=_CALL_S)

    def close(self) -> None:
        self.call(_end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()


async def _end_tasks() -> None:
    await stop(asyncio.all_tasks() - {asyncio.current_task()})


class Link:
    """One direction of calls: from ``port``, which the caller uses, to ``target``, where the called process listens."""

    def __init__(self, loop: ProxyLoop, name: str, port: int, target: int) -> None:
        self.name, self.port, self._target = name, port, target
        self.mode: Mode = "pass"
        self._proxies = loop
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()
        self._pipes: set[_Pipe] = set()
        loop.call(self._listen())

    def set(self, mode: Mode) -> None:
        """Break the link, or mend it with ``pass``. May be called from any thread."""
        self._proxies.call(self._set(mode))

    def close(self) -> None:
        self._proxies.call(self._set("refuse"))

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _set(self, mode: Mode) -> None:
        self.mode = "pass" if mode in ("cut", "half_open") else mode
        if mode in ("cut", "refuse"):
            for pipe in list(self._pipes):
                pipe.abort()
        if mode == "half_open":
            for pipe in list(self._pipes):
                pipe.lose_far_side()
        if mode == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
        elif mode != "refuse" and self._server is None:
            await self._listen()
        self._changed.set()
        self._changed = asyncio.Event()

    async def passable(self, *, answer: bool) -> None:
        """Wait until a piece may pass in this direction."""
        while self.mode == "hang" or (answer and self.mode == "one_way"):
            await self._changed.wait()
        if self.mode == "slow":
            await asyncio.sleep(_SLOW_S)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pipe = _Pipe(self, reader, writer)
        self._pipes.add(pipe)
        try:
            await pipe.run(self._target)
        finally:
            self._pipes.discard(pipe)


class _Pipe:
    """One connection through a link."""

    def __init__(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._link, self._near_reader, self._near = link, reader, writer
        self._far: asyncio.StreamWriter | None = None
        self._half_open = asyncio.Event()

    async def run(self, target: int) -> None:
        try:
            await self._link.passable(answer=False)
            far_reader, self._far = await asyncio.open_connection("127.0.0.1", target)
            pumps = [
                asyncio.create_task(self._pump(self._near_reader, self._far, answer=False)),
                asyncio.create_task(self._pump(far_reader, self._near, answer=True)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            await stop(pumps)
            if self._half_open.is_set():  # the near side keeps its connection until it gives up by itself
                while await self._near_reader.read(_PIECE):
                    pass
        except OSError:
            pass
        finally:
            self.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answer: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                await self._link.passable(answer=answer)
                if answer and self._link.mode in ("newer", "garbled") and piece.startswith(b"HTTP/1.1 200"):
                    piece = await _changed_answer(piece, reader, garbled=self._link.mode == "garbled")
                writer.write(piece)
                await writer.drain()

    def lose_far_side(self) -> None:
        self._half_open.set()
        if self._far is not None:
            self._far.transport.abort()

    def abort(self) -> None:
        """Reset both sides."""
        self._half_open.clear()
        for writer in (self._near, self._far):
            if writer is not None and not writer.transport.is_closing():
                reset = struct.pack("ii", 1, 0)  # a closed socket then sends a reset
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                writer.transport.abort()


async def _changed_answer(piece: bytes, reader: asyncio.StreamReader, *, garbled: bool) -> bytes:
    """Add an unknown field to a JSON answer, or replace it by a page. Others are left as they are."""
    while b"\r\n\r\n" not in piece:
        piece += await reader.read(_PIECE)
    head, _, body = piece.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if length is None or b"application/json" not in head or b"content-encoding" in head.lower():
        return piece
    body += await reader.readexactly(int(length[1]) - len(body))
    if garbled:
        body = _PAGE
        head = head.replace(b"application/json", b"text/html")
    elif body.startswith(b"{") and body != b"{}":
        body = b'{"field_of_a_newer_release":1,' + body[1:]
    return _LENGTH.sub(b"content-length: %d" % len(body), head) + b"\r\n\r\n" + body
