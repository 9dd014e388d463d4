"""Addresses of the queue server: one server, a server behind Sentinels, or a cluster.

=============================================== =======================================================
``redis://user:password@host:6379/0``           one server; ``rediss`` with TLS, ``unix`` for a socket
``redis+sentinel://…@s1:26379,s2:26379/name/0`` the server that the Sentinels call ``name``
``redis+cluster://…@n1:6379,n2:6379``           a cluster, found through any of its nodes
=============================================== =======================================================

``rediss+sentinel`` and ``rediss+cluster`` speak TLS, with the Sentinels as well. User and password are those of the
data servers; ``?sentinel_username=…&sentinel_password=…`` are those of the Sentinels. The other parameters are
redis-py's, such as ``ssl_ca_certs``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode

Kind = Literal["server", "sentinel", "cluster"]

_URL = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>sentinel|cluster)://(?:(?P<user>[^/?#]*)@)?(?P<nodes>[^/?#@]*)"
    r"(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_SINGLE = re.compile(r"(?:rediss?|unix)://.+", re.DOTALL)
_NODE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]]+)(?::(?P<port>\d{1,5}))?")
_PORTS = {"sentinel": 26379, "cluster": 6379}
_SENTINEL_PREFIX = "sentinel_"
_SENTINEL_OPTIONS = ("username", "password")
_FORMS = (
    "redis://user:password@host:6379/0, redis+sentinel://user:password@host:26379,host2:26379/NAME/0 or "
    "redis+cluster://user:password@host:6379,host2:6379; with rediss for TLS"
)


@dataclass(frozen=True)
class RedisAddress:
    """Address of the queue server, taken apart."""

    kind: Kind
    url: str = field(repr=False)
    """Of one server: the whole address. Otherwise the options that its servers share, as redis-py's URL of one."""
    nodes: tuple[tuple[str, int], ...] = ()
    """Host and port of each Sentinel, or of some nodes of the cluster."""
    service: str = ""
    """Name of the server at the Sentinels."""
    sentinel: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """``username`` and ``password`` at the Sentinels, if they want them."""


def parse_address(url: str) -> RedisAddress:
    """Take ``MOR_REDIS_URL`` apart.

    Raises:
        ValueError: it has none of the forms. The message quotes nothing of it, since it has a password.
    """
    found = _URL.fullmatch(url)
    if found is None:
        if _SINGLE.fullmatch(url) is None:
            raise ValueError(f"wanted: {_FORMS}")
        return RedisAddress("server", url)
    kind: Any = found["kind"]
    query = parse_qsl(found["query"] or "", keep_blank_values=True)
    prefixed = {name.removeprefix(_SENTINEL_PREFIX): value for name, value in query if _of_sentinel(name)}
    if unknown := set(prefixed) - (set(_SENTINEL_OPTIONS) if kind == "sentinel" else set()):
        names = ", ".join(f"{_SENTINEL_PREFIX}{name}" for name in sorted(unknown))
        raise ValueError(f"{names}: no parameter of such an address; wanted: {_FORMS}")
    nodes = _nodes(found["nodes"], _PORTS[kind])
    service, database = _path(kind, found["path"] or "")
    user = f"{found['user']}@" if found["user"] else ""
    options = urlencode([pair for pair in query if not _of_sentinel(pair[0])])
    shared = f"{found['scheme']}://{user}host/{database}" + (f"?{options}" if options else "")
    return RedisAddress(kind, shared, nodes, service, tuple(sorted(prefixed.items())))


def shown_address(url: str) -> str:
    """Return ``MOR_REDIS_URL`` for messages: without user, password and parameters."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"


def _of_sentinel(name: str) -> bool:
    return name.startswith(_SENTINEL_PREFIX)


def _nodes(text: str, port: int) -> tuple[tuple[str, int], ...]:
    nodes: list[tuple[str, int]] = []
    for part in text.split(","):
        found = _NODE.fullmatch(part)
        if found is None or not 0 < int(found["port"] or port) < 1 << 16:
            raise ValueError(
                f"host {len(nodes) + 1} of the list is none (an IPv6 address has brackets); wanted: {_FORMS}"
            )
        nodes.append((found["host"].strip("[]"), int(found["port"] or port)))
    return tuple(nodes)


def _path(kind: Kind, path: str) -> tuple[str, int]:
    """Return the name at the Sentinels, and the number of the database."""
    parts = [unquote(part) for part in path.strip("/").split("/") if part]
    service = parts.pop(0) if kind == "sentinel" and parts else ""
    if kind == "sentinel" and not service:
        raise ValueError(f"the name of the server at the Sentinels is missing, such as /mymaster; wanted: {_FORMS}")
    if len(parts) > 1 or not (parts or ["0"])[0].isdigit():
        raise ValueError(f"the last part of the path is no number of a database; wanted: {_FORMS}")
    database = int((parts or ["0"])[0])
    if kind == "cluster" and database:
        raise ValueError("a cluster has the database 0 alone; leave the path out of redis+cluster://")
    return service, database
