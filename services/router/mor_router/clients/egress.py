"""Egress policy: the addresses that the router may connect to, by the endpoint's source, checked at every connect.

==============  =========================================================================
``api``         public addresses, and those of ``MOR_ALLOWED_NETWORKS``
``kubernetes``  addresses of ``MOR_KUBERNETES_NETWORKS``
``loopback``    this machine's loopback, only with ``MOR_ALLOW_LOOPBACK``
==============  =========================================================================

``special_addresses`` lists the addresses that are not public. Link-local, multicast, unspecified and cloud metadata
addresses are always refused. An IPv4 address inside an IPv6 one (mapped, translated, 6to4, NAT64) is checked as the
IPv4 address that it reaches. A name is resolved once per request, each of its addresses is checked, and the connection
goes to a checked address: a second answer of the name server cannot redirect it. Nor can one redirect an enrolment:
its quota resolves the name, and the enrolment has no other addresses (``EgressPolicy.pinned``).

With ``MOR_CLIENT_PROXY``, endpoints of the source ``api`` are reached through a proxy, at the checked address as well.
With ``MOR_CLIENT_PROXY_RESOLVES``, the proxy looks up their names and alone decides on the addresses behind them; the
router checks that a name is one of the public name system, and needs https for it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import httpx
from mor_core.clients import Source
from mor_core.errors import Invalid
from mor_core.failures import describe_failure

from mor_router.clients.name_lookup import resolve
from mor_router.clients.special_addresses import Address, effective_address, never_a_host, special_purpose
from mor_router.config import Network, RouterSettings

Resolver = Callable[[str, int], Awaitable[list[str]]]

_URL = re.compile(r"[!-~]+")
"""Printable ASCII: no spaces, line breaks or look-alikes of other scripts. A name in another script is given in its
``xn--`` form."""
_PUBLIC_NAME = re.compile(r"([a-z0-9_-]+\.)+[a-z][a-z0-9-]*\.?", re.IGNORECASE)
"""Name with a top-level domain. Others are looked up in the proxy's own network, and programs read some that end in a
number, such as ``127.1``, as an address."""
_LOCAL_NAMES = (
    "localhost", "local", "localdomain", "internal", "intranet", "lan", "home", "corp", "private", "svc", "arpa",
    "test", "invalid", "onion", "alt",
)  # fmt: skip
"""Top-level domains that are not public: special-use names (RFC 6761, 6762, 8375, 9476), those of private networks, and
that of Services where a cluster's search domains complete a name."""
_PORTS = {"http": 80, "https": 443}
_NOT_IN_URL = frozenset("@?#\\")
"""Marks of a user, a query or a fragment, even of an empty one, which would swallow the paths that the router appends;
and the backslash, which parsers read in different ways."""

_NO_HOST = "no valid host or port; give https://host[:port][/path]"


class EgressRefused(Invalid):
    """An endpoint's address that the egress policy does not allow."""


@dataclass(frozen=True)
class EgressPolicy:
    """Rules for the addresses that the router may connect to."""

    allow_loopback: bool
    networks: tuple[Network, ...]
    kubernetes: tuple[Network, ...]
    resolver: Resolver = resolve
    pins: tuple[str, ...] | None = None
    """Addresses of every host, in place of what a name server says; ``None``: it is asked."""
    proxy_resolves: bool = False
    """True if the proxy looks up the names of endpoints that were enrolled by API."""
    proxy_except: tuple[Network, ...] = ()
    """Networks whose endpoints are reached without the proxy."""

    @classmethod
    def from_settings(cls, settings: RouterSettings) -> EgressPolicy:
        return cls(
            settings.allow_loopback,
            settings.allowed_networks,
            settings.kubernetes_networks,
            proxy_resolves=settings.client_proxy_resolves,
            proxy_except=settings.client_proxy_except,
        )

    def pinned(self, addresses: Iterable[str]) -> EgressPolicy:
        """Return the policy for connections to these addresses alone, whatever the host."""
        return replace(self, pins=tuple(addresses))

    async def lookup(self, host: str, port: int, source: Source = "api") -> list[str]:
        """Return the addresses of ``host``, unchecked; of an address, or a name that the proxy looks up, itself.

        Raises:
            OSError: the name has no address.
        """
        if self.pins is not None:
            found = list(self.pins)
        elif _is_address(host) or (self.proxy_resolves and source == "api"):
            found = [host]
        else:
            found = await self.resolver(host, port)
        if not found:
            raise OSError("the name server answered without one")
        return found

    def check(self, host: str, address: str, source: Source) -> None:
        """Check that an endpoint of ``source`` may have ``address``.

        Raises:
            EgressRefused: it may not; the message names the setting that would allow it.
        """
        if not _is_address(address):
            _check_public_name(address)
            return
        reached = effective_address(address)
        where = f"{host} is at {address}" if host != address else address
        if never_a_host(reached):
            raise EgressRefused(f"{where}: link-local, metadata and multicast addresses are never connected to")
        if source == "loopback":
            if not (reached.is_loopback and self.allow_loopback):
                raise EgressRefused(
                    f"{where}: enrolled as loopback, which needs a loopback address and MOR_ALLOW_LOOPBACK"
                )
        elif source == "kubernetes":
            if not _inside(reached, self.kubernetes):
                raise EgressRefused(
                    f"{where}: outside of MOR_KUBERNETES_NETWORKS, where endpoints of the cluster may be"
                )
        elif reached.is_loopback:
            raise EgressRefused(f"{where}: a loopback address; set MOR_ALLOW_LOOPBACK=true if this is a demonstration")
        elif (purpose := special_purpose(reached)) is not None and not _inside(reached, self.networks):
            raise EgressRefused(
                f"{where}: not a public address ({purpose}); add its network to MOR_ALLOWED_NETWORKS to permit it"
            )

    async def addresses(self, url: httpx.URL, source: Source) -> list[str]:
        """Resolve the host of ``url`` and check each of its addresses; keep the resolver's order.

        Raises:
            EgressRefused: one of them is not allowed, or a secret would go there unencrypted.
            OSError: the name has no address.
        """
        host = _ascii_host(url)
        found = await self.lookup(host, url.port or _PORTS[url.scheme], source)
        for address in found:
            self.check(host, address, source)
        self._check_scheme(url.scheme, host, found, source)
        return found

    async def admit(self, url: str) -> Source:
        """Check the address of an endpoint that is enrolled by API, and return the source under which it is kept.

        Raises:
            Invalid: the URL is not that of a reward service, or its address is not allowed.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise Invalid(f"url {url!r}: {_NO_HOST}") from error
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host or _URL.fullmatch(url) is None or _NOT_IN_URL & {*url}:
            raise Invalid(
                f"url {url!r}: https://host[:port][/path] is wanted, in ASCII and without user, query or fragment"
            )
        try:
            _ = httpx.URL(url).host  # as the calls read it: an ``xn--`` name may stand for nothing
        except (ValueError, httpx.InvalidURL) as error:
            raise Invalid(f"url {url!r}: {_NO_HOST}") from error
        try:
            found = await self.lookup(host, port)
        except OSError as error:
            raise Invalid(f"url {url!r}: {host} has no address ({describe_failure(error)}); check the name") from error
        on_loopback = all(_is_address(address) and effective_address(address).is_loopback for address in found)
        source: Source = "loopback" if self.allow_loopback and on_loopback else "api"
        for address in found:
            self.check(host, address, source)
        self._check_scheme(parts.scheme, host, found, source)
        return source

    def uses_proxy(self, address: str) -> bool:
        """Return whether an endpoint enrolled by API at ``address`` is reached through the proxy, if there is one."""
        return not (_is_address(address) and _inside(effective_address(address), self.proxy_except))

    def _check_scheme(self, scheme: str, host: str, addresses: Iterable[str], source: Source) -> None:
        """Check that no secret is sent unencrypted to a public address.

        Raises:
            EgressRefused: it would be.
        """
        if source != "api" or scheme != "http":
            return
        for address in addresses:
            if not (_is_address(address) and _inside(effective_address(address), self.networks)):
                raise EgressRefused(
                    f"http://{host}: the client's secret would cross the internet unencrypted; serve https"
                )


class PinnedTransport(httpx.AsyncBaseTransport):
    """Transport that connects to a checked address and keeps the name for ``Host`` and TLS."""

    def __init__(
        self,
        egress: EgressPolicy,
        source: Source,
        direct: httpx.AsyncBaseTransport,
        proxied: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._egress = egress
        self._source = source
        self._direct = direct
        self._proxied = proxied

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = _ascii_host(request.url)
        try:
            found = await self._egress.addresses(request.url, self._source)
        except OSError as error:
            raise httpx.ConnectError(f"{host} has no address ({describe_failure(error)})", request=request) from error
        if not _is_address(host):
            request.extensions = {**request.extensions, "sni_hostname": host}
        for address in found[:-1]:
            try:
                return await self._send(request, address)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError):
                continue
        return await self._send(request, found[-1])

    async def _send(self, request: httpx.Request, address: str) -> httpx.Response:
        request.url = request.url.copy_with(host=address)
        proxied = self._proxied if self._egress.uses_proxy(address) else None
        try:
            return await (proxied or self._direct).handle_async_request(request)
        except AttributeError as error:  # anyio finds no socket in a connection that was reset as soon as it was made
            raise httpx.ConnectError(
                f"{address} reset the connection ({describe_failure(error)})", request=request
            ) from error

    async def aclose(self) -> None:
        await self._direct.aclose()
        if self._proxied is not None:
            await self._proxied.aclose()


def _check_public_name(name: str) -> None:
    """Check that a name which the proxy will look up is one of the public name system.

    Raises:
        EgressRefused: it is not.
    """
    if _PUBLIC_NAME.fullmatch(name) is None or name.rstrip(".").rpartition(".")[2].lower() in _LOCAL_NAMES:
        raise EgressRefused(
            f"{name} is not a name of the public name system, and MOR_CLIENT_PROXY_RESOLVES leaves all names to the "
            "proxy; give the endpoint's address, inside MOR_ALLOWED_NETWORKS, or a public name"
        )


def _ascii_host(url: httpx.URL) -> str:
    """Return the host as it is looked up and named in TLS: ``xn--`` names stay as they are."""
    return url.raw_host.decode("ascii")


def _inside(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
