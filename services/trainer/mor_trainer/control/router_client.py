"""Client of the router. Each request carries the caller's token, so that the router decides what the caller may see."""

from __future__ import annotations

import ssl

import httpx
from mor_core.errors import Unavailable
from mor_core.failures import describe_failure

from mor_trainer.config import ControlSettings

_TIMEOUT_S = 5.0
"""The router answers from memory; a person waits for the page meanwhile."""
_RETRY_S = 5.0
"""``Retry-After`` of a failure: a restarted router is ready within seconds."""


class RouterClient:
    """HTTP client of the router.

    ``transport`` replaces the network in tests.
    """

    def __init__(self, settings: ControlSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = None if settings.router_url is None else str(settings.router_url)
        self._ca_file = settings.router_ca_file
        self._transport = transport

    async def get(self, path: str, token: str) -> httpx.Response:
        """Request ``path`` and return the answer, which may be a refusal.

        Raises:
            Unavailable: no address is set, or the router does not answer or fails.
        """
        if self.url is None:
            raise Unavailable("run control has no router's address; set MOR_ROUTER_URL", _RETRY_S)
        try:
            async with httpx.AsyncClient(
                base_url=self.url,
                headers={"Authorization": f"Bearer {token}"},
                timeout=_TIMEOUT_S,
                transport=self._transport,
                verify=ssl.create_default_context(cafile=self._ca_file),
            ) as http:
                reply = await http.get(path)
        except httpx.HTTPError as error:
            reason = describe_failure(error)
            raise Unavailable(
                f"the router does not answer: {reason}; check MOR_ROUTER_URL and its log", _RETRY_S
            ) from error
        if reply.is_server_error:
            raise Unavailable(f"the router answered {reply.status_code}; see its log", _RETRY_S)
        return reply
