"""Authentication of the status API: tokens of the tokens file, and tokens that the router gave to its clients.

A client receives one token at enrolment, and the router alone keeps its hash. Run control looks up the owner of a token
that is not in the file at the router, and caches the answer.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path

import httpx
from mor_core.auth import Principal, Scope, TokenFile, hash_token
from mor_core.errors import Unauthorized, Unavailable
from mor_core.service_info import ServiceInfo

from mor_trainer.control.router_client import RouterClient

_KNOWN_S = 60.0
"""Seconds for which an owner is cached: a revoked token works that long."""
_UNKNOWN_S = 10.0
"""Seconds for which an unknown token is cached: a client that was just enrolled waits that long at most."""
_RETRY_S = 5.0
"""``Retry-After`` when the router fails: a restarted router is ready within seconds."""
_MOST = 1024
"""Cached tokens, so that made-up ones cannot fill the memory."""


class ClientTokens(TokenFile):
    """Tokens file, extended by the tokens of the router's clients."""

    def __init__(self, tokens_file: Path | None, router: RouterClient) -> None:
        super().__init__(tokens_file)
        self._router = router
        self._answers: OrderedDict[str, tuple[float, Principal | None]] = OrderedDict()

    async def identify(self, token: str) -> Principal:
        """Return the owner of a token.

        Raises:
            Unauthorized: neither the file nor the router knows the token.
            Unavailable: the router did not answer.
        """
        try:
            return self.authenticate(token)
        except Unauthorized:
            if self._router.url is None:
                raise
        digest = hash_token(token)
        until, caller = self._answers.get(digest, (0.0, None))
        if time.monotonic() >= until:
            caller = await self._look_up(token)
            self._answers.pop(digest, None)
            self._answers[digest] = (time.monotonic() + (_KNOWN_S if caller else _UNKNOWN_S), caller)
            while len(self._answers) > _MOST:
                self._answers.popitem(last=False)
        if caller is None:
            raise Unauthorized("unknown bearer token; request one from the platform team, or rotate yours")
        return caller

    async def _look_up(self, token: str) -> Principal | None:
        reply = await self._router.get("/v1/about", token)
        if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return None
        if not reply.is_success:
            raise Unavailable(
                f"the router answered {reply.status_code} to the look-up of a client's token; see its log",
                _RETRY_S,
            )
        caller = ServiceInfo.model_validate_json(reply.content, extra="ignore").caller
        return caller if caller.scope is Scope.client else None
