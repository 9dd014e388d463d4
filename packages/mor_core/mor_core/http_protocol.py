"""HTTP/1.1 protocol of the server: uvicorn's on httptools, bounded in connections, heads, silence and slow readers.

httptools' parser (llhttp, that of Node.js) is strict about framing and takes a third of the time of h11, but bounds
nothing. What comes before a request reaches the application is bounded here; ``mor_core.request_guard`` bounds the
rest.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mor_core.response_headers import DEFAULTS
from mor_core.settings import ServiceSettings

_MOST_HEAD_BYTES = 32 << 10
"""Request line and headers together: four times nginx's default, so that no proxy before it sends more."""
_MOST_HEADERS = 100
"""Apache's default."""
_MOST_TARGET_BYTES = 8 << 10
"""Path and query; RFC 9112 recommends at least 8,000."""

_HEAD_REFUSAL = f"the headers are over {_MOST_HEAD_BYTES} bytes or {_MOST_HEADERS} fields"
_MOST_PIPELINED = 8
"""Requests that may wait on a connection for the response before theirs; common clients send none."""


class OpenConnections:
    """Open connections of a server, all of them and by address."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._most = settings.max_connections
        self._most_per_address = settings.max_connections_per_address
        self._by_address: dict[str, set[HttpProtocol]] = {}
        self._waiting: OrderedDict[HttpProtocol, None] = OrderedDict()
        """Connections without a complete request, longest first."""
        self._open = 0

    def admit(self, connection: HttpProtocol) -> bool:
        """Count a new connection. At a limit, close the one that has waited longest in place of it.

        Returns false where all the others have a request in progress: then it must be closed itself.
        """
        mates = self._by_address.setdefault(connection.address, set())
        if len(mates) >= self._most_per_address:
            admitted = self._replace_oldest(mates)
        else:
            admitted = self._open < self._most or self._replace_oldest(None)
        mates.add(connection)
        self._open += 1
        return admitted

    def leave(self, connection: HttpProtocol) -> None:
        mates = self._by_address.get(connection.address, set())
        if connection in mates:
            mates.discard(connection)
            self._open -= 1
        if not mates:
            self._by_address.pop(connection.address, None)
        self._waiting.pop(connection, None)

    def waits(self, connection: HttpProtocol) -> None:
        """Note that a connection has no request in progress."""
        self._waiting[connection] = None

    def works(self, connection: HttpProtocol) -> None:
        """Note that a connection has a request in progress."""
        self._waiting.pop(connection, None)

    def _replace_oldest(self, among: set[HttpProtocol] | None) -> bool:
        for oldest in self._waiting:
            if among is None or oldest in among:
                self.leave(oldest)
                oldest.transport.abort()
                return True
        return False


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, connections: OpenConnections, settings: ServiceSettings, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.address = ""
        self._open_connections = connections
        self._head_timeout_s = settings.head_timeout_s
        self._write_timeout_s = settings.write_timeout_s
        self._in_head = True
        """True from the end of a request to the end of the next one's headers."""
        self._in_body = False
        self._head_bytes = 0
        self._field_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._refusal = (HTTPStatus.BAD_REQUEST, "the request is not valid HTTP/1.1")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = _network(self.client[0]) if self.client else ""
        if not self._open_connections.admit(self):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections have a request in progress; try again")
            return
        self._open_connections.waits(self)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_connections.leave(self)
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            self._watch_head()
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > _MOST_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _HEAD_REFUSAL)

    def on_message_begin(self) -> None:
        self._in_head, self._field_bytes = True, 0
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._stop(HTTPStatus.TOO_MANY_REQUESTS, f"over {_MOST_PIPELINED} requests before their responses")
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > _MOST_TARGET_BYTES:
            self._stop(HTTPStatus.REQUEST_URI_TOO_LONG, f"the path and query are over {_MOST_TARGET_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer: no route reads them
        super().on_header(name, value)
        self._field_bytes += len(name) + len(value)
        if len(self.headers) > _MOST_HEADERS or self._field_bytes > _MOST_HEAD_BYTES:
            self._stop(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _HEAD_REFUSAL)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body, self._head_bytes = False, True, 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._open_connections.works(self)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._in_body = True, False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._in_body and self.cycle.response_complete:  # nobody reads the rest of the body
            self.transport.close()
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_writing()
        elif self.cycle.response_complete:
            self._open_connections.waits(self)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # of a response that nobody takes
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        self._refuse(*self._refusal)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch_writing(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._write_timeout_s, self.transport.abort)

    def _watch_head(self) -> None:
        """Give the head of a request its time, from the connection or the first byte after another request."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._head_timeout_s, self._head_late)

    def _head_late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_timer = None  # bytes of a next request came early: their time begins after the response
            return
        if not self._head_bytes:
            self.transport.close()  # nobody has asked for anything
            return
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the headers did not arrive in {self._head_timeout_s:g} s")

    def _stop(self, status: HTTPStatus, reason: str) -> None:
        """End the parsing of this connection."""
        self._refusal = (status, reason)
        raise ValueError(reason)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answer without the application, and close."""
        body = reason.encode()
        protection = "".join(f"{name.lower()}: {value}\r\n" for name, value in DEFAULTS.items())
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\n{protection}connection: close\r\n\r\n"
        )
        if self.cycle is None or self.cycle.response_complete:  # else it would stand inside of another response
            self.transport.write(head.encode() + body)
        self.transport.close()
        self._watch_writing()

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()


def _network(address: str) -> str:
    """Return what counts as one address: for IPv6 the /64 network, all of which one host may have.

    A socket at ``::`` gives IPv4 callers as ``::ffff:a.b.c.d``; each of them is an address of its own.
    """
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return address if parsed.version == 4 else str(ip_network((parsed, 64), strict=False))
