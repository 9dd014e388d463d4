"""A client that abuses HTTP harms itself only: every answer is bounded in time and bytes, and nothing of it remains."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from mor_router.clients.responses import ClientFailure
from pydantic import SecretStr

from tests.router.conftest import Api, Start
from tests.router.endpoints import TOKEN, Endpoints
from tests.router.raw_endpoint import Attack, RawEndpoint, raw_endpoint, response, serving
from tests.router.test_scoring import line

pytestmark = pytest.mark.anyio

DEADLINE_S = 1.0
JSON = "Content-Type: application/json"


def once(make: Callable[[bytes], bytes]) -> Attack:
    """Attack with one write."""

    async def attack(writer: asyncio.StreamWriter, honest: bytes) -> None:
        writer.write(make(honest))

    return attack


def drip(make: Callable[[bytes], Iterator[bytes]], pause_s: float = 0.02) -> Attack:
    """Attack that sends part after part, with a pause between them."""

    async def attack(writer: asyncio.StreamWriter, honest: bytes) -> None:
        for part in make(honest):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return attack


def chunked(*chunks: bytes, trailers: bytes = b"", head: str = "") -> bytes:
    lines = ["HTTP/1.1 200 OK", JSON, "Transfer-Encoding: chunked", *([head] if head else [])]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body + b"0\r\n" + trailers + b"\r\n"


def forever(part: bytes, first: bytes = b"") -> Callable[[bytes], Iterator[bytes]]:
    def parts(_: bytes) -> Iterator[bytes]:
        yield first
        while True:
            yield part

    return parts


BOMB = gzip.compress(b"0" * (64 << 20))
ATTACKS: dict[str, Attack] = {
    "one header of a megabyte": once(lambda honest: response(honest, "X-Long: " + "x" * (1 << 20))),
    "a hundred thousand headers": once(lambda honest: response(honest, *["X: y"] * 100_000)),
    "headers without an end": drip(forever(b"X-More: " + b"x" * 1000 + b"\r\n", b"HTTP/1.1 200 OK\r\n"), 0),
    "headers byte by byte": drip(lambda honest: (bytes([byte]) for byte in response(honest))),
    "a body byte by byte": drip(lambda honest: (response(honest)[:100], *(bytes([x]) for x in response(honest)[100:]))),
    "chunks byte by byte": drip(
        forever(b"1\r\n \r\n", f"HTTP/1.1 200 OK\r\n{JSON}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    ),
    "interim responses without an end": drip(forever(b"HTTP/1.1 100 Continue\r\n\r\n" * 500), 0),
    "early hints without an end": drip(forever(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 100), 0),
    "switching protocols": once(lambda honest: b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + honest),
    "a strange status": once(lambda honest: response(honest, status="999 Nine")),
    "a status that is no number": once(lambda honest: response(honest, status="abc OK")),
    "no content": once(lambda _: b"HTTP/1.1 204 No Content\r\n\r\n"),
    "HTTP/2": once(lambda _: b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00" * 18),
    "no HTTP": once(lambda honest: honest + b"\r\n\r\n"),
    "trailers without an end": once(lambda honest: chunked(honest, trailers=b"X-T: " + b"x" * (1 << 20) + b"\r\n")),
    "a chunk extension of a megabyte": once(
        lambda honest: chunked()[:-5] + b"5;" + b"x" * (1 << 20) + b"\r\nhello\r\n0\r\n\r\n"
    ),
    "a chunk of a terabyte": once(lambda honest: chunked()[:-5] + b"10000000000\r\n" + b" " * (1 << 20)),
    "length and chunks": once(lambda honest: chunked(honest + b" " * (1 << 20), head="Content-Length: 5")),
    "two lengths": once(lambda honest: response(honest, "Content-Length: 5")),
    "a negative length": once(
        lambda honest: f"HTTP/1.1 200 OK\r\n{JSON}\r\nContent-Length: -5\r\n\r\n".encode() + honest
    ),
    "a length that is too long": once(
        lambda honest: response(honest).replace(b"Content-Length: ", b"Content-Length: 1")
    ),
    "a length that is too short": once(
        lambda honest: response(honest).replace(b"Content-Length: 1", b"Content-Length: ")
    ),
    "a compressed bomb": once(lambda _: response(BOMB[:3000], "Content-Encoding: gzip")),
    "a bomb under many encodings": once(lambda _: response(BOMB[:3000], "Content-Encoding: gzip, br, deflate")),
    "a compressed transfer": once(lambda honest: chunked(honest).replace(b"chunked", b"gzip, chunked")),
    "a redirect to itself": once(
        lambda honest: response(honest, "Location: /v1/score", status="307 Temporary Redirect")
    ),
    "a redirect elsewhere": once(
        lambda honest: response(honest, "Location: http://169.254.169.254/", status="302 Found")
    ),
    "a login": once(lambda honest: response(honest, "WWW-Authenticate: Negotiate", status="401 Unauthorized")),
    "half an answer": drip(lambda honest: iter([response(honest)[:-5]]), 60),
}
"""Kind -> answer to a score request, of which none may count."""


@pytest.fixture
async def pair(start: Start, endpoints: Endpoints) -> AsyncIterator[tuple[Api, RawEndpoint]]:
    """Start a router with an honest client ``good`` and a raw one ``bad``."""
    patient = {"circuit_least_calls": 1000, "circuit_calls": 1000, "client_attempts": 1, "quorum": 0.3}
    async with start(deadline_s=DEADLINE_S, **patient) as api, raw_endpoint() as raw:
        await api.enrol(endpoints.endpoint("good"))
        body = {"name": "bad", "url": raw.url, "token": TOKEN, "state": "active"}
        await api.ok("POST", "/v1/clients", body)
        yield api, raw


async def test_no_abuse_of_http_costs_more_than_the_deadline_or_anothers_score(pair: tuple[Api, RawEndpoint]) -> None:
    api, raw = pair
    for kind, attack in ATTACKS.items():
        raw.attack = attack
        began = time.monotonic()
        found = await api.reward("answer 1", "answer 3")
        assert line(found, "bad")["status"] in ("error", "timeout"), kind
        assert line(found, "bad")["raw"] is None, kind
        assert line(found, "good")["raw"] == [1.0, 3.0], kind
        assert found["status"] == "ok", kind
        assert time.monotonic() - began < DEADLINE_S + 2, kind
        assert len(line(found, "bad")["detail"]) < 1000, kind
    raw.attack = None
    assert line(await api.reward("answer 1", "answer 3"), "bad")["raw"] == [0.0, 1.0]  # it harmed itself for a while


async def test_a_second_response_on_a_connection_is_never_taken_for_an_answer(pair: tuple[Api, RawEndpoint]) -> None:
    """A client that answers a request before it is sent answers for items that do not exist."""
    api, raw = pair
    smuggled = response(b'{"model": {"name": "m", "version": "1"}, "items": []}')
    raw.attack = once(lambda honest: response(honest) + smuggled + response(honest))
    for _ in range(4):
        found = await api.reward("answer 1", "answer 3")
        assert line(found, "bad")["raw"] in ([0.0, 1.0], None)
        assert line(found, "good")["raw"] == [1.0, 3.0]
    raw.attack = None
    answers = [line(await api.reward("answer 1", "answer 3"), "bad")["raw"] for _ in range(3)]
    assert answers[-1] == [0.0, 1.0]


async def test_cookies_are_neither_kept_nor_sent(pair: tuple[Api, RawEndpoint]) -> None:
    api, raw = pair
    raw.attack = once(lambda honest: response(honest, "Set-Cookie: a=b; Path=/", "Set-Cookie: c=d; Domain=127.0.0.1"))
    for _ in range(2):
        assert line(await api.reward("answer 1", "answer 3"), "bad")["status"] == "ok"
    assert "cookie" not in "".join(raw.requests).lower()


async def test_a_client_that_does_not_read_its_request_costs_the_deadline(pair: tuple[Api, RawEndpoint]) -> None:
    api, raw = pair
    raw.reads_bodies = False
    began = time.monotonic()
    found = await api.reward("answer 1", "answer 3", text="?" * (8 << 20))
    assert (line(found, "bad")["status"], line(found, "good")["status"]) == ("timeout", "ok")
    assert time.monotonic() - began < DEADLINE_S + 5


async def test_a_tls_handshake_without_an_end_is_bounded(pair: tuple[Api, RawEndpoint]) -> None:
    api, _ = pair

    async def drip_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x16\x03\x03\x40\x00")  # a handshake record of 16 kB, of which one byte a while comes
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"\x02")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()

    async with serving(drip_bytes) as port:
        record = api.router.clients.pool.records["bad"].model_copy(update={"url": f"https://127.0.0.1:{port}"})
        client = api.router.clients.pool.open(record, SecretStr(TOKEN))
        began = time.monotonic()
        with pytest.raises(ClientFailure):
            await client.card(0.3)
        assert time.monotonic() - began < 3
        await client.close()
