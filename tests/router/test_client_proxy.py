"""Calls to clients go through the proxy of the settings, to the addresses that the router has checked."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_core.wire import Message
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.outbound import ProxyTunnel
from mor_router.config import RouterSettings
from mor_router.learning.labels.labeller import SampledGroup
from mor_router.learning.labels.labeller_choice import Judge
from pydantic import SecretStr, ValidationError

from tests.router.conftest import Start
from tests.router.endpoints import TOKEN, Endpoints
from tests.router.test_egress import authority, tls_server

pytestmark = pytest.mark.anyio

__all__ = ["authority", "tls_server"]
OFFICE = ipaddress.ip_network("192.168.7.0/24")
PASSWORD = "mark-of-the-proxy"


class ConnectProxy:
    """HTTP proxy that opens tunnels only, all to one port of this machine, and keeps what it saw."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.heads: list[bytes] = []
        self.upward = bytearray()
        """Bytes that passed from the router to endpoints."""
        self.refuse: dict[bytes, bytes] = {}
        """Target -> status line in place of a tunnel."""
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            method, target, _ = head.split(b"\r\n")[0].split(b" ")
            if method != b"CONNECT" or target in self.refuse:
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % self.refuse.get(target, b"405 No"))
                await writer.drain()
                return
            inward, outward = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
            with contextlib.closing(outward):
                await asyncio.gather(self._copy(reader, outward, self.upward), self._copy(inward, writer, bytearray()))

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: bytearray) -> None:
        while content := await reader.read(1 << 16):
            seen += content
            writer.write(content)
            await writer.drain()
        writer.close()

    @property
    def targets(self) -> list[str]:
        return [head.split(b" ")[1].decode() for head in self.heads]

    @property
    def settings(self) -> dict[str, Any]:
        return {"client_proxy": SecretStr(self.url)}


@contextlib.asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[ConnectProxy]:
    proxy = ConnectProxy(port)
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0)
    proxy.url = f"http://router:{PASSWORD}@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()


def policy(*addresses: str, **more: Any) -> EgressPolicy:
    async def resolver(host: str, port: int) -> list[str]:
        assert not more.get("proxy_resolves"), "the router must not look names up"
        return list(addresses)

    return EgressPolicy(allow_loopback=True, networks=(OFFICE,), kubernetes=(), resolver=resolver, **more)


def port_of(endpoints: Endpoints) -> int:
    return int(endpoints.address.rpartition(":")[2])


async def test_a_call_to_an_https_endpoint_is_a_tunnel_to_the_checked_address(
    start: Start, endpoints: Endpoints, tls_server: int, authority: tuple[Path, Path, Path]
) -> None:
    endpoint = endpoints.endpoint("clinic")
    path = endpoint.url.removeprefix(endpoints.address)
    ca, certificate, key = authority
    tls = {"ca_file": ca, "client_cert_file": certificate, "client_key_file": key}
    async with proxy_to(tls_server) as proxy, start(policy("8.8.8.8"), **tls, **proxy.settings) as api:
        body = {"name": "clinic", "url": f"https://clinic.example{path}", "token": TOKEN, "state": "active"}
        await api.ok("POST", "/v1/clients", body)
        assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
        other = {**body, "name": "other", "url": f"https://other.example{path}"}
        refused = await api.call("POST", "/v1/clients", other)
        assert "certificate verify failed" in refused.json()["detail"]
    assert endpoint.headers[-1]["host"] == "clinic.example"
    assert set(proxy.targets) == {"8.8.8.8:443"}
    assert all(b"Proxy-Authorization: Basic " in head for head in proxy.heads)
    assert all("proxy" not in name for headers in endpoint.headers for name in headers)
    seen = b"".join(proxy.heads) + proxy.upward
    assert b"\x16\x03" in seen
    assert not any(secret in seen for secret in (TOKEN.encode(), b"Bearer", path.encode()))


async def test_an_http_endpoint_of_an_allowed_network_is_reached_through_a_tunnel(
    start: Start, endpoints: Endpoints
) -> None:
    endpoint = endpoints.endpoint("office")
    url = endpoint.url.replace("127.0.0.1", "office.example")
    async with (
        proxy_to(port_of(endpoints)) as proxy,
        start(policy("192.168.7.8", "192.168.7.9"), **proxy.settings) as api,
    ):
        proxy.refuse[f"192.168.7.8:{port_of(endpoints)}".encode()] = b"503 Unreachable"
        await api.ok("POST", "/v1/clients", {"name": "office", "url": url, "token": TOKEN})
    assert {f"192.168.7.{last}:{port_of(endpoints)}" for last in (8, 9)} == set(proxy.targets)
    assert all(head.startswith(b"CONNECT ") for head in proxy.heads)


@pytest.mark.parametrize("address", ["169.254.169.254", "10.0.0.1", "::ffff:10.0.0.1", "127.0.0.1"])
async def test_the_proxy_is_not_asked_for_an_address_that_the_policy_refuses(
    start: Start, endpoints: Endpoints, address: str
) -> None:
    """A proxy usually reaches more than the router, so a name must not lead it into its own network."""
    body = {"name": "clinic", "url": "https://clinic.example", "token": TOKEN}
    async with proxy_to(port_of(endpoints)) as proxy, start(policy("8.8.8.8", address), **proxy.settings) as api:
        assert (await api.call("POST", "/v1/clients", body)).status_code == 422
    assert proxy.heads == []


async def test_an_address_of_ipv6_is_named_in_brackets(start: Start, endpoints: Endpoints) -> None:
    async with proxy_to(port_of(endpoints)) as proxy, start(policy("2606:4700::1111"), **proxy.settings) as api:
        await api.call("POST", "/v1/clients", {"name": "six", "url": "https://six.example", "token": TOKEN})
    assert proxy.targets[0] == "[2606:4700::1111]:443"


async def test_calls_inside_the_deployment_never_use_the_proxy(start: Start, endpoints: Endpoints) -> None:
    """Endpoints on loopback, those in networks that are excepted, and the policy of the rollout service."""
    endpoint, near = endpoints.endpoint("here"), endpoints.endpoint("near")
    policies = endpoints.chat(lambda _: [])
    settings = {"client_proxy_except": (OFFICE,), "policy_url": policies.url}
    except_office = policy("192.168.7.9", proxy_except=(OFFICE,))
    async with proxy_to(port_of(endpoints)) as proxy, start(except_office, **proxy.settings, **settings) as api:
        await api.enrol(endpoint)
        assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
        url = near.url.replace("127.0.0.1", "near.example")
        async with asyncio.timeout(10):
            await api.call("POST", "/v1/clients", {"name": "near", "url": url, "token": TOKEN})
        await api.ok("GET", "/v1/status")
    assert proxy.heads == []


async def test_a_refusal_of_the_proxy_is_named_and_its_password_is_not(
    start: Start, endpoints: Endpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"name": "clinic", "url": "https://clinic.example", "token": TOKEN}
    async with proxy_to(port_of(endpoints)) as proxy, start(policy("8.8.8.8"), **proxy.settings) as api:
        proxy.refuse[b"8.8.8.8:443"] = b"403 Forbidden"
        answer = await api.call("POST", "/v1/clients", body)
        assert "the proxy of MOR_CLIENT_PROXY answered 403 to CONNECT 8.8.8.8:443" in answer.json()["detail"]
        proxy.refuse[b"8.8.8.8:443"] = b"junk"
        answer = await api.call("POST", "/v1/clients", body)
        assert "opened no tunnel" in answer.json()["detail"]
    assert PASSWORD not in answer.text + "".join(capsys.readouterr())


async def test_a_call_that_ends_while_the_proxy_is_silent_leaves_no_connection() -> None:
    """A client whose address answers nothing keeps the proxy waiting until the call's deadline."""
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.read()  # until the router closes
            gone.set()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        proxy = httpx.URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await ProxyTunnel(proxy, None).connect_tcp("192.0.2.1", 443, timeout=20)
        async with asyncio.timeout(2):
            await gone.wait()


async def test_a_proxy_may_look_names_up(start: Start, endpoints: Endpoints, tls_server: int) -> None:
    egress = policy(proxy_resolves=True)
    async with proxy_to(tls_server) as proxy, start(egress, **proxy.settings) as api:
        await api.call("POST", "/v1/clients", {"name": "clinic", "url": "https://clinic.example", "token": TOKEN})
        assert set(proxy.targets) == {"clinic.example:443"}
        proxy.heads.clear()
        for host in (
            "localhost",
            "metadata.google.internal",
            "127.1",
            "0x7f.1",
            "valkey.mor.svc",
            "2130706433",
            "mor-redis",
            "10.0.0.1",
        ):
            answer = await api.call("POST", "/v1/clients", {"name": "x", "url": f"https://{host}", "token": TOKEN})
            assert answer.status_code == 422, host
        answer = await api.call("POST", "/v1/clients", {"name": "x", "url": "http://clinic.example", "token": TOKEN})
        assert "serve https" in answer.json()["detail"]
        assert proxy.heads == []


async def test_a_labeller_is_called_through_the_proxy(start: Start, endpoints: Endpoints) -> None:
    chat = endpoints.chat(lambda _: ["A"])
    url = chat.url.replace("127.0.0.1", "judge.example")
    choice = Judge(kind="judge", url=url, model="m", token=SecretStr(TOKEN))
    async with proxy_to(port_of(endpoints)) as proxy, start(policy("192.168.7.9"), **proxy.settings) as api:
        labellers = api.router.learning.labellers
        await labellers.put("helpful", choice)
        labeller = await labellers.open("helpful")
        assert labeller is not None
        question = (Message(role="user", content="Which?"),)
        assert await labeller.label(SampledGroup(question, ("a", "b"), {}), "helpful", 10) == ()
        await labeller.close()
    assert len(chat.calls) == 2
    assert set(proxy.targets) == {f"192.168.7.9:{port_of(endpoints)}"}


@pytest.mark.parametrize("change", [{"client_proxy_resolves": True}, {"client_proxy_except": ["10.0.0.0/8"]}])
def test_rules_of_a_proxy_without_a_proxy_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="without MOR_CLIENT_PROXY"):
        RouterSettings(redis_url=SecretStr("redis://r"), **change)
