"""Calls between MoR's processes go to their destination whatever proxy variables are set; a setting names a proxy."""

from __future__ import annotations

import ast
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mor_client.config import read_settings
from mor_client.errors import ServiceError
from mor_client.transport import Transport
from mor_core.errors import Invalid
from mor_reward.router_registration import RouterUnavailable, deregister

ROOT = Path(__file__).parents[2]
PROGRAMS = [*ROOT.glob("services/*/mor_*"), *ROOT.glob("packages/*/mor_*"), ROOT / "examples"]
CLIENTS = {"Client", "AsyncClient", "HTTPTransport", "AsyncHTTPTransport"}


class Listener:
    """Server that keeps the first line of each connection and answers nothing."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.lines.append(connection.recv(4096).partition(b"\r\n")[0])

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(timeout=5)


@pytest.fixture
def listeners() -> Iterator[tuple[Listener, Listener]]:
    """A proxy and a destination."""
    both = Listener(), Listener()
    yield both
    for one in both:
        one.close()


@pytest.fixture
def proxied(listeners: tuple[Listener, Listener], monkeypatch: pytest.MonkeyPatch) -> tuple[Listener, Listener]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, listeners[0].url)
        monkeypatch.setenv(name.lower(), listeners[0].url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    return listeners


def test_proxy_variables_catch_no_call(proxied: tuple[Listener, Listener]) -> None:
    proxy, destination = proxied
    transport = Transport("router", destination.url, read_settings(token="t", attempts=1))
    with pytest.raises(ServiceError):
        transport.once("GET", "/v1/about")
    transport.close()
    with pytest.raises(RouterUnavailable):
        deregister(destination.url, "t", name="a", attempts=1)
    assert len(destination.lines) == 2
    assert proxy.lines == []


def test_a_proxy_of_the_settings_gets_the_call(listeners: tuple[Listener, Listener]) -> None:
    proxy, destination = listeners
    transport = Transport("router", destination.url, read_settings(proxy=proxy.url, attempts=1))
    with pytest.raises(ServiceError):
        transport.once("GET", "/v1/about")
    transport.close()
    with pytest.raises(RouterUnavailable):
        deregister(destination.url, "t", name="a", attempts=1, proxy=proxy.url)
    assert proxy.lines == [
        f"GET {destination.url}/v1/about HTTP/1.1".encode(),
        f"DELETE {destination.url}/v1/clients/a HTTP/1.1".encode(),
    ]
    assert destination.lines == []


@pytest.mark.parametrize("address", ["proxy:3128", "socks5://proxy:1080", "http://", "http://u:mark-55@proxy:port"])
def test_an_address_that_is_no_proxy_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(Invalid, match="a proxy's address is http://host:port") as refused:
        read_settings(proxy=address)
    assert "mark-55" not in str(refused.value)


def test_every_http_client_ignores_the_environment() -> None:
    """A client that reads the environment sends its bearer token to the proxy of some other program."""
    reading = []
    for path in (file for folder in PROGRAMS for file in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "httpx"
                and (node.func.attr in CLIENTS or node.func.attr in ("get", "post", "put", "delete", "request"))
            ):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if given.get("trust_env") != "False" and "ASGITransport" not in given.get("transport", ""):
                    reading.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not reading, reading
