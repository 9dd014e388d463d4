"""Proxies for calls that leave the deployment.

Calls between MoR's own processes go to their destination directly: they carry bearer tokens, and a proxy variable that
some other program needs must not send those elsewhere. So no HTTP client reads the environment (``trust_env=False``),
and a call that may need a proxy has a setting of its own.
"""

from __future__ import annotations

from typing import Annotated

import httpx
from pydantic import AfterValidator, SecretStr


def _address(value: SecretStr) -> SecretStr:
    """Check that the value is the address of a proxy; it may hold a password, so messages do not repeat it."""
    try:
        address = httpx.URL(value.get_secret_value())
        complete = (
            address.scheme in ("http", "https")
            and bool(address.host)
            and 0 < (80 if address.port is None else address.port) < 1 << 16
        )
    except httpx.InvalidURL:
        complete = False
    if not complete:
        raise ValueError("a proxy's address is http://host:port or https://host:port, with user:password@ if it asks")
    return value


ProxyAddress = Annotated[SecretStr, AfterValidator(_address)]
"""Address of an HTTP proxy; secret, because it may hold a password."""


def proxy_of(address: SecretStr | None) -> str | None:
    """Return the address as httpx takes it."""
    return None if address is None else address.get_secret_value()
