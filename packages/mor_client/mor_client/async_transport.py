"""Asynchronous HTTP transport to one service, with the limits, retries and errors of ``Transport``."""

from __future__ import annotations

from types import TracebackType

import httpx

from mor_client import errors
from mor_client.transport import CONNECT_S, Transport


class AsyncTransport:
    """HTTP client of the service that ``transport`` calls, for one event loop, until it is closed."""

    def __init__(self, transport: Transport, most_connections: int, limit: str) -> None:
        """``limit``: the setting that the time limit of requests comes from.

        Raises:
            ServiceError: the service's address is missing or invalid.
        """
        self.service = transport.service
        self._transport = transport
        self._limit = limit
        limits = httpx.Limits(max_connections=most_connections)
        self._http = httpx.AsyncClient(**transport.http_options(), limits=limits, trust_env=False)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncTransport:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def post(self, path: str, content: bytes, timeout_s: float) -> httpx.Response:
        """Send JSON, and again where no response came or the service was not ready; return a success, or 409.

        The token is read anew, as it may have been replaced since this was opened.

        Raises:
            ServiceError: the service refused, failed or did not respond; with the cure.
        """
        headers = {"Content-Type": "application/json", **self._transport.authorization()}
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
        async for attempt in self._transport.retries(repeatable=True):
            with attempt:
                with self._transport.errors(self._limit):
                    response = await self._http.post(path, content=content, headers=headers, timeout=timeout)
                self._transport.check_service(response)
                if not response.is_success and response.status_code != httpx.codes.CONFLICT:
                    raise errors.from_response(self._transport.service, response)
                return response
        raise AssertionError("the retry context returns or raises")
