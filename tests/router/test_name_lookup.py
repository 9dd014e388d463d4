"""A client whose name server is silent delays its own connections and no other's."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from mor_core.errors import Invalid
from mor_router.clients import name_lookup
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.name_lookup import resolve

pytestmark = pytest.mark.anyio


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Have the system's resolver wait for names under ``.silent``, as for a name server that drops every packet."""
    answered, asked, look_up = threading.Event(), list[str](), socket.getaddrinfo

    def patient(host: str, *arguments: Any, **named: Any) -> Any:
        if host.endswith(".silent"):
            asked.append(host)
            answered.wait(20)
        return look_up("localhost" if host.endswith(".silent") else host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", patient)
    monkeypatch.setattr(name_lookup, "_LONGEST_S", 0.5)
    yield asked
    answered.set()
    while name_lookup._in_progress:
        time.sleep(0.01)


async def test_silent_name_servers_delay_no_other_lookup_and_no_thread(silence: list[str]) -> None:
    waiting = [asyncio.create_task(resolve(f"client-{number}.silent", 443)) for number in range(60)]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    assert "127.0.0.1" in await resolve("127.0.0.1", 443)
    assert await asyncio.to_thread(len, "work of others") == 14
    assert time.monotonic() - began < 0.3
    for failed in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(failed, OSError)
        assert "did not answer" in str(failed)


async def test_a_name_has_one_lookup_at_a_time_whoever_asks_or_goes(silence: list[str]) -> None:
    tasks = [asyncio.create_task(resolve("client.silent", 443)) for _ in range(20)]
    await asyncio.sleep(0.05)
    tasks[0].cancel()
    failed = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(failed[0], asyncio.CancelledError)
    assert all(isinstance(one, OSError) for one in failed[1:])
    with pytest.raises(OSError, match="did not answer"):
        await resolve("client.silent", 443)
    assert silence == ["client.silent"]


async def test_the_lookups_at_a_time_are_bounded(silence: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_lookup, "_MOST_LOOKUPS", 3)
    found = await asyncio.gather(*(resolve(f"c{n}.silent", 1) for n in range(5)), return_exceptions=True)
    assert sum("being looked up" in str(one) for one in found) == 2


async def test_a_name_is_looked_up_again_after_a_thread_could_not_begin() -> None:
    usual = threading.stack_size(1 << 46)  # bytes, more than there are addresses
    try:
        with pytest.raises(OSError, match="begins no more threads"):
            await resolve("127.0.0.1", 8443)
    finally:
        threading.stack_size(usual)
    assert await resolve("127.0.0.1", 8443) == ["127.0.0.1"]


@pytest.mark.parametrize("name", ["no-such-name.invalid", "a" * 64 + ".example", "\x00"])
async def test_a_name_without_an_address_fails_for_its_caller(name: str) -> None:
    with pytest.raises(OSError):
        await resolve(name, 443)
    assert (name, 443) not in name_lookup._in_progress
    if name != "\x00":
        with pytest.raises(Invalid, match="has no address"):
            await EgressPolicy(allow_loopback=False, networks=(), kubernetes=()).admit(f"https://{name}")
