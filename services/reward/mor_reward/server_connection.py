"""Connection of the client's commands to a service of the server: the router, or run control.

The server belongs to another organisation, so its responses are bounded in bytes and time.
"""

from __future__ import annotations

import time

import httpx
from mor_core.certificates import client_context
from mor_core.errors import Invalid
from mor_core.service_addresses import FORM_OF_ADDRESS, is_address

TIMEOUT_S = 30.0
"""Seconds for one attempt: the router calls a new client before it answers."""
_LONGEST_S = 300.0
"""Seconds for a whole response: the largest one, over 3 Mbit/s. ``TIMEOUT_S`` alone counts anew with each byte."""
_MOST_BYTES = 1 << 20
"""Usual bound on a response: an enrolment or an error has some kilobytes."""


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


def exchange(
    http: httpx.Client, method: str, path: str, *, json: object = None, most_bytes: int = _MOST_BYTES
) -> httpx.Response:
    """Send a request and return the response, of up to ``most_bytes``.

    Raises:
        Invalid: the response has more bytes, or takes minutes.
        InvalidURL: the address is none.
        TransportError: there was no response.
    """
    until = time.monotonic() + _LONGEST_S
    with http.stream(method, path, json=json) as response:
        body = bytearray()
        for part in response.iter_bytes():  # unpacked: a few packed bytes may be gigabytes
            body += part
            if len(body) > most_bytes:
                raise Invalid(f"{response.url} returned more than {most_bytes} bytes; is it the right address?")
            if time.monotonic() > until:
                raise Invalid(f"{response.url} took more than {_LONGEST_S:g} s to respond; try again later")
    headers = [pair for pair in response.headers.multi_items() if pair[0] not in {"content-encoding", "content-length"}]
    return httpx.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)
