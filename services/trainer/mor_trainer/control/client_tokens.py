"""Inbound tokens of the status API: those of the tokens file, and those that the router gave to its clients.

A client has one token, which it got at enrolment, and the router alone keeps its hash. For a token that is not in the
file the router is asked who it belongs to; its answer is kept for a while.
"""

from __future__ import annotations

import ssl
import time
from collections import OrderedDict

import httpx
from mor_core.about import About
from mor_core.auth import Principal, Scope, TokenFile, hash_token
from mor_core.errors import Unauthorized, Unavailable

from mor_trainer.config import ControlSettings

_KNOWN_S = 60.0
_UNKNOWN_S = 10.0
_MOST = 1024
_TIMEOUT_S = 5.0


class ClientTokens(TokenFile):
    """``transport``: another way to the router than the network, for tests."""

    def __init__(self, settings: ControlSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        super().__init__(settings.tokens_file)
        self._router_url = settings.router_url
        self._tls = ssl.create_default_context(cafile=settings.router_ca_file)
        self._transport = transport
        self._answers: OrderedDict[str, tuple[float, Principal | None]] = OrderedDict()

    async def identify(self, token: str) -> Principal:
        """
        Raises:
            Unauthorized: neither the file nor the router knows the token.
            Unavailable: the router did not answer.
        """
        try:
            return self.authenticate(token)
        except Unauthorized:
            if self._router_url is None:
                raise
        digest = hash_token(token)
        until, caller = self._answers.get(digest, (0.0, None))
        if time.monotonic() >= until:
            caller = await self._ask(str(self._router_url), token)
            self._answers.pop(digest, None)
            self._answers[digest] = (time.monotonic() + (_KNOWN_S if caller else _UNKNOWN_S), caller)
            while len(self._answers) > _MOST:
                self._answers.popitem(last=False)
        if caller is None:
            raise Unauthorized("unknown bearer token; ask the platform team for one, or rotate yours")
        return caller

    async def _ask(self, router_url: str, token: str) -> Principal | None:
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with httpx.AsyncClient(
                base_url=router_url, headers=headers, timeout=_TIMEOUT_S, verify=self._tls, transport=self._transport
            ) as http:
                reply = await http.get("/v1/about")
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"the router, which knows clients' tokens, gives no answer: {reason}", 5.0) from error
        if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return None
        if not reply.is_success:
            raise Unavailable(f"the router, which knows clients' tokens, answered {reply.status_code}", 5.0)
        caller = About.model_validate_json(reply.content, extra="ignore").caller
        return caller if caller.scope is Scope.client else None
