"""HTTP transports for calls to clients and labellers: direct, or through the proxy of ``MOR_CLIENT_PROXY``.

Every call through the proxy goes in a tunnel (CONNECT), those to ``http://`` endpoints too. TLS ends at the endpoint:
the proxy sees neither token nor content of an ``https://`` call. The target of the tunnel is the address that the
router has checked, while ``Host`` and TLS keep the name.
"""

from __future__ import annotations

import base64
import ssl
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

import h11
import httpcore
import httpx
from mor_core.certificates import client_context
from mor_core.clients import Source
from mor_core.process import bracketed

from mor_router.clients.egress import EgressPolicy, PinnedTransport
from mor_router.config import RouterSettings

_PROXY = "the proxy of MOR_CLIENT_PROXY"
"""Name of the proxy in messages; they reach whoever enrols a client, who need not know the operator's network."""
_READ_BYTES = 4 << 10
"""Bytes of one read of the proxy's answer; h11 refuses headers of more than 16 KiB."""
_DEFAULT_TIMEOUT_S = 5.0
"""Seconds to open a tunnel where the caller sets no limit."""


def outbound_transport(
    egress: EgressPolicy,
    source: Source,
    settings: RouterSettings,
    tls: ssl.SSLContext,
    limits: httpx.Limits | None = None,
) -> PinnedTransport:
    """Return the transport for the endpoints of ``source``; those outside of ``api`` never use the proxy."""
    limits = limits or httpx.Limits()
    direct = httpx.AsyncHTTPTransport(verify=tls, trust_env=False, limits=limits)
    if settings.client_proxy is None or source != "api":
        return PinnedTransport(egress, source, direct)
    proxy = httpx.URL(settings.client_proxy.get_secret_value())
    return PinnedTransport(egress, source, direct, TunnelTransport(proxy, settings.ca_file, tls, limits))


class TunnelTransport(httpx.AsyncHTTPTransport):
    """HTTP transport whose connections are tunnels through a proxy."""

    def __init__(self, proxy: httpx.URL, ca_file: Path | None, tls: ssl.SSLContext, limits: httpx.Limits) -> None:
        super().__init__(verify=tls, trust_env=False, limits=limits)
        # httpx's own proxy support ignores ``sni_hostname`` and cannot name an IPv6 address; it has no public way to
        # replace how connections are opened.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=ProxyTunnel(proxy, ca_file),
        )


class ProxyTunnel(httpcore.AsyncNetworkBackend):
    """Opens a tunnel through an HTTP proxy in place of a connection to a host."""

    def __init__(self, proxy: httpx.URL, ca_file: Path | None) -> None:
        self._host = proxy.host
        self._port = proxy.port or {"http": 80, "https": 443}[proxy.scheme]
        self._tls = client_context("MOR_CA_FILE", ca_file) if proxy.scheme == "https" else None
        self._credentials = [("Proxy-Authorization", f"Basic {_credentials(proxy)}")] if proxy.userinfo else []
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Open a tunnel to ``host``; the signature is httpcore's.

        Raises:
            httpcore.ProxyError: the proxy cannot be reached, or opens no tunnel.
        """
        until = time.monotonic() + (_DEFAULT_TIMEOUT_S if timeout is None else timeout)
        try:
            stream = await self._network.connect_tcp(
                self._host, self._port, _left(until), local_address, socket_options
            )
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            raise httpcore.ProxyError(f"{_PROXY} cannot be reached ({error or type(error).__name__})") from error
        try:
            if self._tls is not None:
                stream = await stream.start_tls(self._tls, server_hostname=self._host, timeout=_left(until))
            await self._open(stream, f"{bracketed(host)}:{port}", until)
        except BaseException as error:  # also where the call's deadline ends it: the connection would stay open
            await stream.aclose()
            if isinstance(error, httpcore.NetworkError | httpcore.TimeoutException | h11.RemoteProtocolError):
                raise httpcore.ProxyError(f"{_PROXY} opened no tunnel ({error or type(error).__name__})") from error
            raise
        return stream

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)

    async def _open(self, stream: httpcore.AsyncNetworkStream, target: str, until: float) -> None:
        """Request the tunnel.

        Raises:
            httpcore.ProxyError: the proxy refused it, or sent bytes that are not the endpoint's.
            h11.RemoteProtocolError: the answer is not HTTP.
            httpcore.NetworkError: the connection broke.
            httpcore.TimeoutException: there was no answer by ``until``.
        """
        http = h11.Connection(h11.CLIENT)
        request = h11.Request(method="CONNECT", target=target, headers=[("Host", target), *self._credentials])
        await stream.write(http.send(request) or b"", _left(until))
        await stream.write(http.send(h11.EndOfMessage()) or b"", _left(until))
        while not isinstance(event := http.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                http.receive_data(await stream.read(_READ_BYTES, _left(until)))
        if not 200 <= event.status_code < 300:
            raise httpcore.ProxyError(f"{_PROXY} answered {event.status_code} to CONNECT {target}")
        if http.trailing_data[0]:
            raise httpcore.ProxyError(f"{_PROXY} sent bytes into the tunnel to {target}")


def _left(until: float) -> float:
    return max(0.001, until - time.monotonic())


def _credentials(proxy: httpx.URL) -> str:
    return base64.b64encode(f"{unquote(proxy.username)}:{unquote(proxy.password)}".encode()).decode()
