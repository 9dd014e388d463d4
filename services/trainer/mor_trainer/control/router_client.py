"""Client of the router. A request for a caller carries that caller's token, so that the router decides what it sees."""

from __future__ import annotations

from typing import Any

import httpx
from mor_core.certificates import client_context
from mor_core.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from mor_core.failures import describe_failure
from mor_core.service_addresses import ROUTER, other_service

from mor_trainer.config import ControlSettings

_TIMEOUT_S = 5.0
"""The router answers from memory; a person waits for the page meanwhile."""
_REFUSED = (401, 403)
"""Statuses by which the router refuses a token."""
_RETRY_S = 5.0
"""``Retry-After`` of a failure: a restarted router is ready within seconds."""


class RouterClient:
    """HTTP client of the router.

    ``transport`` replaces the network in tests.
    """

    def __init__(self, settings: ControlSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = None if settings.router_url is None else str(settings.router_url)
        self._transport = transport
        self._tls = client_context("MOR_ROUTER_CA_FILE", settings.router_ca_file) if self.url is not None else False

    async def get(self, path: str, token: str) -> httpx.Response:
        """Request ``path`` and return the answer, which may be a refusal.

        Raises:
            Unavailable: no address is set, or the router does not answer or fails.
        """
        return await self._request("GET", path, token)

    async def forward(
        self, method: str, path: str, token: str, content: Any = None, *, timeout_s: float = _TIMEOUT_S
    ) -> httpx.Response:
        """Request ``path`` for a caller of run control, with JSON as the body, and return the answer.

        Raises:
            NotFound: no address is set, or the router has nothing there.
            Forbidden: the router refuses the caller's token.
            Conflict: the state of what the router has there forbids it.
            Unavailable: the router does not answer or fails.
        """
        if self.url is None:
            raise NotFound("run control has no router's address; set MOR_ROUTER_URL to see what the router has")
        reply = await self._request(method, path, token, content, timeout_s)
        if reply.status_code in _REFUSED:
            raise Forbidden("the router refused this token; give the router the same tokens file")
        if reply.is_success:
            return reply
        raise {404: NotFound, 409: Conflict}.get(reply.status_code, Invalid)(_detail(reply))

    async def _request(
        self, method: str, path: str, token: str, content: Any = None, timeout_s: float = _TIMEOUT_S
    ) -> httpx.Response:
        if self.url is None:
            raise Unavailable("run control has no router's address; set MOR_ROUTER_URL", _RETRY_S)
        try:
            async with httpx.AsyncClient(
                base_url=self.url,
                headers={"Authorization": f"Bearer {token}"},
                timeout=timeout_s,
                transport=self._transport,
                verify=self._tls,
                trust_env=False,
            ) as http:
                reply = await http.request(method, path, json=content)
        except httpx.HTTPError as error:
            reason = describe_failure(error)
            raise Unavailable(
                f"the router does not answer: {reason}; check MOR_ROUTER_URL and its log", _RETRY_S
            ) from error
        if (other := other_service(reply.headers, ROUTER)) is not None:
            raise Unavailable(f"MOR_ROUTER_URL {self.url}: {other}; correct it", _RETRY_S)
        if reply.is_server_error:
            raise Unavailable(f"the router answered {reply.status_code}; see its log", _RETRY_S)
        return reply


def _detail(reply: httpx.Response) -> str:
    """Return the reason of a refusal: the router answers with problem+json."""
    try:
        return str(reply.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the router answered {reply.status_code}; see its log"
