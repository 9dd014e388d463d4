"""Clients of the queue server at any address: one server, the one that Sentinels name, or a cluster."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mor_core.bounded_replies import BoundedParser
from mor_core.certificates import ReloadedContext, system_authorities
from mor_core.closed_transports import reporting_closed
from mor_core.redis_address import RedisAddress, parse_address
from mor_core.redis_cluster import ClusterClient
from mor_core.redis_pool import MOST_CONNECTIONS, ShrinkingPool, ShrinkingSentinelPool

_SOCKET_TIMEOUT_S = 15.0
"""Longest wait for an answer of the queue server, seconds: three times the longest blocking read."""
_CONNECT_TIMEOUT_S = 5.0
"""Longest wait for a connection, seconds."""
_SENTINEL_TIMEOUT_S = 1.0
"""Longest wait for a Sentinel, seconds: they are near and the next one is asked then."""


def open_client(url: str) -> Redis:
    """Return a client whose operations have time limits and a bounded number of jittered retries.

    Raises:
        ValueError: the address has none of the forms of ``redis_address``.
        Invalid: the certificates that it names cannot be used.
    """
    address = parse_address(url)
    options: dict[str, Any] = {
        "socket_timeout": _SOCKET_TIMEOUT_S,
        "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        "health_check_interval": 30,
        "retry": Retry(ExponentialWithJitterBackoff(cap=2.0, base=0.05), retries=6),
        "retry_on_error": [RedisConnectionError, RedisTimeoutError],
        "protocol": 2,  # the shape of XREADGROUP replies depends on it
        "parser_class": BoundedParser,
        "client_name": f"mor-{os.getpid()}",
        "max_connections": MOST_CONNECTIONS,
        "driver_info": None,  # Redis 7.0 has no CLIENT SETINFO, so that no user may be granted it
    }
    if address.kind == "server":
        pool = ShrinkingPool.from_url(address.url, **options)
        _manage(pool)
        return Redis.from_pool(pool)
    given: dict[str, Any] = {**options, **parse_url(address.url)}
    given.pop("host", None)
    is_tls = given.pop("connection_class", Connection) is SSLConnection
    if address.kind == "sentinel":
        return _sentinel_client(address, given, is_tls=is_tls)
    for name in ("parser_class", "retry_on_error"):
        given.pop(name)
    cluster = ClusterClient(address.nodes, connection_kind, BoundedParser, ssl=is_tls, **given)
    # redis-py's cluster client is no subclass of its client, and has the same commands.
    return cast("Redis", cluster)


def _sentinel_client(address: RedisAddress, given: dict[str, Any], *, is_tls: bool) -> Redis:
    tls = {name: value for name, value in given.items() if name.startswith("ssl_")}
    kind = SentinelManagedSSLConnection if is_tls else SentinelManagedConnection
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        address.nodes,
        sentinel_kwargs={
            "socket_timeout": _SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": _SENTINEL_TIMEOUT_S,
            "retry": Retry(NoBackoff(), retries=1),
            "protocol": 2,
            "driver_info": None,
            "ssl": is_tls,
            **(tls if is_tls else {}),
            **dict(address.sentinel),
        },
    )
    for sentinel in sentinels.sentinels:
        _manage(sentinel.connection_pool)
    named = ShrinkingSentinelPool(address.service, sentinels, connection_class=kind, **given)
    _manage(named)
    return _SentinelClient.from_pool(named)


class _SentinelClient(Redis):
    """Client of the server that Sentinels name; it closes its connections to them, too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        await pool.sentinel_manager.aclose()


def _manage(pool: ConnectionPool) -> None:
    """Have a pool make connections of our kind.

    Raises:
        Invalid: their certificates cannot be used.
    """
    pool.connection_class = connection_kind(pool.connection_class)
    pool.make_connection()  # type: ignore[no-untyped-call]


def connection_kind(kind: Any) -> Any:
    """Return a kind of connection that reports a closed transport, and takes renewed certificates."""
    kind = reporting_closed(kind)
    return _reloading(kind) if issubclass(kind, SSLConnection) else kind


def _reloading(kind: Any) -> Any:
    """Return a kind of connection over TLS that reads its certificate files again when they change."""
    shared: list[ReloadedContext] = []  # a client has one context for all connections

    class TlsConnection(kind):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            files = self.ssl_context
            if not shared:
                given = [files.ca_certs or system_authorities(), files.certfile, files.keyfile]
                paths = [Path(path) for path in given if path]
                certificate = Path(files.certfile) if files.certfile else None
                shared.append(
                    ReloadedContext(ssl.PROTOCOL_TLS_CLIENT, "MOR_REDIS_URL", paths, _maker(files), certificate)
                )
            files.context = shared[0]

    return TlsConnection


def _maker(files: Any) -> Callable[[], ssl.SSLContext]:
    """Return a function that makes a context of the options that redis-py took from the address."""

    def make() -> ssl.SSLContext:
        fresh = copy(files)
        fresh.context = None
        made: ssl.SSLContext = fresh.get()
        return made

    return make
