"""Run control's calls to the router, each with the token of who asks: the router decides what that may see."""

from __future__ import annotations

import ssl

import httpx
from mor_core.errors import Unavailable

from mor_trainer.config import ControlSettings

_TIMEOUT_S = 5.0
_RETRY_S = 5.0


class RouterClient:
    """``transport``: another way to it than the network, for tests."""

    def __init__(self, settings: ControlSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = None if settings.router_url is None else str(settings.router_url)
        self._ca_file = settings.router_ca_file
        self._transport = transport

    async def get(self, path: str, token: str) -> httpx.Response:
        """Whatever it answers, errors of its own apart.

        Raises:
            Unavailable: no address is set, or it does not answer.
        """
        if self.url is None:
            raise Unavailable("run control knows no router; set MOR_ROUTER_URL", _RETRY_S)
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
            reason = str(error) or type(error).__name__
            raise Unavailable(f"the router gives no answer: {reason}", _RETRY_S) from error
        if reply.is_server_error:
            raise Unavailable(f"the router answered {reply.status_code}", _RETRY_S)
        return reply
