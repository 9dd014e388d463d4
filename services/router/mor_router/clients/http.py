"""Bounded HTTP exchanges with a client: limited in bytes, checked for type; a failure is a ``ClientFailure``."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx
import pydantic_core
from mor_core import tracing
from mor_core.failures import describe_failure
from mor_core.missing_images import MISSING_BYTES
from mor_core.service_addresses import other_service
from pydantic import SecretStr

from mor_router import __version__
from mor_router.clients.egress import EgressRefused
from mor_router.clients.responses import REPEATED, ClientFailure, repeats

_CONNECT_S = 5.0
"""Seconds to connect: a host that does not answer within them is down."""
_ERROR_BYTES = 4 << 10
"""Bytes of an error body that are read for the message."""
_EXCERPT_CHARACTERS = 300
"""Length up to which a message quotes an error body, in characters."""
_LENGTH = re.compile("[0-9]{1,18}")
"""A declared length that is worth a look; the body is counted in any case."""
_LONGEST_RETRY_AFTER_S = 3600.0
"""Upper bound of ``Retry-After``, in seconds: a client cannot demand a longer pause."""


def bearer_client(transport: httpx.AsyncBaseTransport, secret: SecretStr) -> httpx.AsyncClient:
    """Return an HTTP client that sends ``secret``, follows no redirect and keeps no cookie.

    The caller limits the time of a request; only connecting has its own limit.
    """
    return httpx.AsyncClient(
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none is kept or sent
        timeout=httpx.Timeout(None, connect=_CONNECT_S),
        headers={
            "Authorization": f"Bearer {secret.get_secret_value()}",
            "Accept-Encoding": "identity",
            "User-Agent": f"mor-router/{__version__}",
        },
    )


class BoundedHttpClient:
    """HTTP requests to one service, with bounds on the bytes that are read."""

    def __init__(self, http: httpx.AsyncClient, url: str, secret: SecretStr, service: str | None = None) -> None:
        """``service``: title by which a service of MoR at ``url`` names itself, see ``mor_core.service_addresses``."""
        self._service = service
        self._http = http
        self._url = url.rstrip("/")
        self._secret = secret

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, path: str, limit: int, within_s: float) -> bytes:
        """Return the JSON body of a 200 response. ``within_s``: time after which the caller cancels the request.

        Raises:
            ClientFailure: any other outcome.
        """
        async with self._stream("GET", path, within_s) as response:
            if response.status_code != 200:
                raise await self._refusal(response, path)
            _check_json(response)
            return await _bounded(response, limit)

    async def post(self, path: str, content: bytes, limit: int, deadline_ms: int) -> tuple[int, bytes]:
        """Return the status, 200 or 409, and the body.

        Raises:
            ClientFailure: any other outcome.
        """
        headers = {"Content-Type": "application/json", "X-MoR-Deadline-Ms": str(deadline_ms), **tracing.headers()}
        async with self._stream("POST", path, deadline_ms / 1000, content=content, headers=headers) as response:
            if response.status_code not in (200, 409):
                raise await self._refusal(response, path)
            _check_json(response)
            limit = limit if response.status_code == 200 else MISSING_BYTES
            return response.status_code, await _bounded(response, limit)

    @asynccontextmanager
    async def _stream(
        self,
        method: str,
        path: str,
        within_s: float,
        *,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        # Connecting ends before the caller cancels: httpcore leaves the socket of a cancelled TLS handshake open.
        timeout = httpx.Timeout(None, connect=min(_CONNECT_S, max(0.001, 0.8 * within_s)))
        responded = False
        try:
            async with self._http.stream(
                method, self._url + path, content=content, headers=headers, timeout=timeout
            ) as response:
                responded = True
                yield response
        except EgressRefused as error:
            raise ClientFailure("egress", str(error)) from error
        except RuntimeError as error:
            raise ClientFailure(
                "connect",
                f"the connection was closed meanwhile ({describe_failure(error)}): the client was rotated or removed",
            ) from error
        except httpx.ProxyError as error:
            raise ClientFailure(
                "connect",
                f"{describe_failure(error)}; the router's operator has to permit the address there",
                retry=True,
            ) from error
        except httpx.TransportError as error:
            cause = describe_failure(error)
            if responded:
                raise ClientFailure("connect", f"the connection broke in the middle of the answer ({cause})") from error
            raise ClientFailure(
                "connect", f"its reward service cannot be reached ({cause}); is it running?", retry=True
            ) from error

    async def _refusal(self, response: httpx.Response, path: str) -> ClientFailure:
        status = response.status_code
        if self._service is not None and (other := other_service(response.headers, self._service)) is not None:
            return ClientFailure("status", f"{path} answered {status}: {other}")
        if 300 <= status < 400:
            return ClientFailure("status", f"{path} answered {status}, a redirect; enrol the address that it leads to")
        excerpt = await self._excerpt(response)
        if status in (401, 403):
            return ClientFailure(
                "refused",
                f"{path} answered {status}: it does not accept the token it was enrolled with; rotate it ({excerpt})",
            )
        if status in (429, 503):
            return ClientFailure(
                "busy", f"{path} answered {status} ({excerpt})", retry=True, retry_after_s=_retry_after(response)
            )
        return ClientFailure("status", f"{path} answered {status} ({excerpt})")

    async def _excerpt(self, response: httpx.Response) -> str:
        """Return the ``detail`` of an error body, unless it repeats the secret or the request.

        The text ends in logs, dead letters and pages. Frameworks quote the input that they refuse, here a prompt or a
        response; a body without ``detail`` as a text, such as an HTML page, is not quoted at all.
        """
        try:
            body = await _bounded(response, _ERROR_BYTES)
        except ClientFailure:
            return "with a body that is too long to show"
        detail: object = None
        with suppress(ValueError, KeyError, TypeError):
            detail = pydantic_core.from_json(body)["detail"]
        if not isinstance(detail, str):
            return "no reason given"
        text = detail.replace(self._secret.get_secret_value(), "[hidden]")[:_EXCERPT_CHARACTERS].strip()
        if repeats(text, response.request.content):
            return REPEATED
        return text or "no reason given"


def _check_json(response: httpx.Response) -> None:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/problem+json"):
        raise ClientFailure("content_type", f"answered with {kind or 'no content type'}; application/json is wanted")
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ClientFailure("content_type", f"answered with content encoding {encoding}; none was requested")


async def _bounded(response: httpx.Response, limit: int) -> bytes:
    """Read the raw body, and stop as soon as it is longer than ``limit`` bytes."""
    declared = response.headers.get("content-length", "")
    if _LENGTH.fullmatch(declared) and int(declared) > limit:
        raise ClientFailure("too_large", f"the answer has {declared} bytes; at most {limit} are read")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            raise ClientFailure("too_large", f"the answer has more than {limit} bytes; no more are read")
    return bytes(body)


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of either form of the header; ``None`` where it is absent or unreadable."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    with suppress(ValueError):
        return min(max(0.0, float(value)), _LONGEST_RETRY_AFTER_S)
    with suppress(ValueError, TypeError, OverflowError):  # what dates without a zone or beyond the calendar raise
        left = (parsedate_to_datetime(value) - _sent_at(response)).total_seconds()
        return min(max(0.0, left), _LONGEST_RETRY_AFTER_S)
    return None


def _sent_at(response: httpx.Response) -> datetime:
    """Return the time of the response by the clock of its sender, which dated ``Retry-After`` too; else ours."""
    with suppress(ValueError, TypeError, OverflowError):
        sent = parsedate_to_datetime(response.headers.get("date", ""))
        if sent.tzinfo is not None:
            return sent
    return datetime.now(UTC)
