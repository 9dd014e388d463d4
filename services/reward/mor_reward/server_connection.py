"""Connection of the client's commands to a service of the server: the router, or run control."""

from __future__ import annotations

import httpx
from mor_core.certificates import client_context
from mor_core.errors import Invalid
from mor_core.service_addresses import FORM_OF_ADDRESS, is_address

TIMEOUT_S = 30.0
"""Seconds for one attempt: the router calls a new client before it answers."""


def connection(option: str, address: str, token: str, proxy: str | None) -> httpx.Client:
    """Return a client for the service at ``address``, which ``option`` gave. The caller closes it.

    Raises:
        Invalid: the address is none.
    """
    if not is_address(address):
        raise Invalid(f"{option} {address}: no service can have this address; write it as {FORM_OF_ADDRESS}")
    return httpx.Client(
        base_url=address,
        timeout=TIMEOUT_S,
        headers={"Authorization": f"Bearer {token}"},
        proxy=proxy,
        verify=client_context("SSL_CERT_FILE", None),
        trust_env=False,
    )
