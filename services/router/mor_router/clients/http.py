"""One HTTP exchange with a client: bounded in bytes, checked for type, every outcome a value or a ``ClientFailure``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from mor_core import tracing
from mor_core.wire import Sha256
from pydantic import SecretStr, TypeAdapter, ValidationError

from mor_router import __version__
from mor_router.clients.egress import EgressRefused
from mor_router.clients.responses import ClientFailure

_CONNECT_S = 5.0
_ERROR_BYTES = 4 << 10
_EXCERPT = 300
_MISSING_BYTES = 64 << 10
_MISSING = TypeAdapter(set[Sha256])
_LONGEST_RETRY_AFTER_S = 3600.0


def bearer(transport: httpx.AsyncBaseTransport, secret: SecretStr) -> httpx.AsyncClient:
    """A client that shows ``secret``, follows no redirect and leaves time limits to its caller, connecting apart."""
    return httpx.AsyncClient(
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(None, connect=_CONNECT_S),
        headers={
            "Authorization": f"Bearer {secret.get_secret_value()}",
            "Accept-Encoding": "identity",
            "User-Agent": f"mor-router/{__version__}",
        },
    )


class Exchange:
    """The HTTP side of one client."""

    def __init__(self, http: httpx.AsyncClient, url: str, secret: SecretStr) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._secret = secret

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, path: str, limit: int) -> bytes:
        """The body of a 200 answer in JSON.

        Raises:
            ClientFailure: anything else.
        """
        async with self._stream("GET", path) as response:
            if response.status_code != 200:
                raise await self._refusal(response, path)
            _check_json(response)
            return await _bounded(response, limit)

    async def post(self, path: str, content: bytes, limit: int, deadline_ms: int) -> tuple[int, bytes]:
        """Status 200 or 409 and the body.

        Raises:
            ClientFailure: anything else.
        """
        headers = {"Content-Type": "application/json", "X-MoR-Deadline-Ms": str(deadline_ms), **tracing.headers()}
        async with self._stream("POST", path, content=content, headers=headers) as response:
            if response.status_code not in (200, 409):
                raise await self._refusal(response, path)
            _check_json(response)
            limit = limit if response.status_code == 200 else _MISSING_BYTES
            return response.status_code, await _bounded(response, limit)

    @asynccontextmanager
    async def _stream(
        self, method: str, path: str, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        began = False
        try:
            async with self._http.stream(method, self._url + path, content=content, headers=headers) as response:
                began = True
                yield response
        except EgressRefused as error:
            raise ClientFailure("egress", str(error)) from error
        except RuntimeError as error:
            raise ClientFailure(
                "connect", f"the connection was closed meanwhile ({error}): rotated or removed"
            ) from error
        except httpx.TransportError as error:
            what = str(error) or type(error).__name__
            if began:
                raise ClientFailure(
                    "connect", f"the connection broke off in the middle of the answer ({what})"
                ) from error
            raise ClientFailure("connect", f"cannot reach {self._url} ({what}); is it running?", retry=True) from error

    async def _refusal(self, response: httpx.Response, path: str) -> ClientFailure:
        status = response.status_code
        if 300 <= status < 400:
            return ClientFailure("status", f"{path} answered {status}, a redirect; enrol the address that it leads to")
        said = await self._excerpt(response)
        if status in (401, 403):
            return ClientFailure(
                "refused",
                f"{path} answered {status}: it does not accept the token it was enrolled with; rotate it ({said})",
            )
        if status in (429, 503):
            return ClientFailure(
                "busy", f"{path} answered {status} ({said})", retry=True, retry_after_s=_retry_after(response)
            )
        return ClientFailure("status", f"{path} answered {status} ({said})")

    async def _excerpt(self, response: httpx.Response) -> str:
        """The start of an error body, or its ``detail``; without the secret, should the client echo it."""
        try:
            body = await _bounded(response, _ERROR_BYTES)
        except ClientFailure:
            return "with a body that is too long to show"
        text = body.decode(errors="replace")
        with suppress(ValueError, KeyError, TypeError):
            text = str(json.loads(text)["detail"])
        return text.replace(self._secret.get_secret_value(), "[hidden]")[:_EXCERPT].strip() or "no reason given"


def missing_images(body: bytes) -> set[str]:
    """The hashes of a 409 answer.

    Raises:
        ClientFailure: it names none.
    """
    try:
        missing = _MISSING.validate_python(json.loads(body)["missing_images"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ClientFailure("images", "answered 409 without a list 'missing_images'") from error
    if not missing:
        raise ClientFailure("images", "answered 409 and misses no image")
    return missing


def _check_json(response: httpx.Response) -> None:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/problem+json"):
        raise ClientFailure("content_type", f"answered with {kind or 'no content type'}; application/json is wanted")
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ClientFailure("content_type", f"answered with content encoding {encoding}; none was asked for")


async def _bounded(response: httpx.Response, limit: int) -> bytes:
    """The raw body, given up as soon as it is longer than ``limit`` bytes."""
    declared = response.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise ClientFailure("too_large", f"the answer has {int(declared)} bytes; at most {limit} are read")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            raise ClientFailure("too_large", f"the answer has more than {limit} bytes; no more are read")
    return bytes(body)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from either form of the header; ``None`` when it is absent or unreadable."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    with suppress(ValueError):
        return min(max(0.0, float(value)), _LONGEST_RETRY_AFTER_S)
    with suppress(ValueError):
        left = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        return min(max(0.0, left), _LONGEST_RETRY_AFTER_S)
    return None
