"""Inbound tokens of the status API: those of the tokens file, and those that the router gave to its clients.

A client has one token, which it got at enrolment, and the router alone keeps its hash. For a token that is not in the
file the router is asked who it belongs to; its answer is kept for a while.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path

import httpx
from mor_core.auth import Principal, Scope, TokenFile, hash_token
from mor_core.errors import Unauthorized, Unavailable
from mor_core.service_info import ServiceInfo

from mor_trainer.control.router import Router

_KNOWN_S = 60.0
_UNKNOWN_S = 10.0
_MOST = 1024


class ClientTokens(TokenFile):
    def __init__(self, tokens_file: Path | None, router: Router) -> None:
        super().__init__(tokens_file)
        self._router = router
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
            if self._router.url is None:
                raise
        digest = hash_token(token)
        until, caller = self._answers.get(digest, (0.0, None))
        if time.monotonic() >= until:
            caller = await self._ask(token)
            self._answers.pop(digest, None)
            self._answers[digest] = (time.monotonic() + (_KNOWN_S if caller else _UNKNOWN_S), caller)
            while len(self._answers) > _MOST:
                self._answers.popitem(last=False)
        if caller is None:
            raise Unauthorized("unknown bearer token; request one from the platform team, or rotate yours")
        return caller

    async def _ask(self, token: str) -> Principal | None:
        reply = await self._router.get("/v1/about", token)
        if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return None
        if not reply.is_success:
            raise Unavailable(f"the router, which knows clients' tokens, answered {reply.status_code}", 5.0)
        caller = ServiceInfo.model_validate_json(reply.content, extra="ignore").caller
        return caller if caller.scope is Scope.client else None
