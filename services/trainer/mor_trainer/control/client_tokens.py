"""Authentication of the status API: tokens of the tokens file, and tokens that the router gave to its clients.

A client receives one token at enrolment, and the router alone keeps its hash. Run control fetches all the hashes every
few seconds and compares in memory: an unknown token costs no request, and as much time as a known one.
"""

from __future__ import annotations

import asyncio
import random
import time

import httpx
import structlog
from mor_core.auth import Principal, Scope, TokenFile, hash_token
from mor_core.clients import PageToken
from mor_core.errors import Unavailable
from mor_core.token_file import known_holder
from pydantic import SecretStr, TypeAdapter, ValidationError

from mor_trainer.control.router_client import RouterClient

_REFRESH_S = 3.0
"""Mean seconds between fetches: a new client waits that long, and a removed one reads that much longer."""
_KEPT_S = 60.0
"""Seconds for which the last hashes are used while the router does not answer; a removed client may read that long."""
_RETRY_S = 5.0
"""``Retry-After`` without hashes: a restarted router is ready within seconds."""

_TOKENS = TypeAdapter(list[PageToken])

log = structlog.get_logger(__name__)


class ClientTokens(TokenFile):
    """Tokens file, extended by the tokens of the router's clients."""

    def __init__(self, file: TokenFile, router: RouterClient, service_token: SecretStr) -> None:
        self._file = file
        self._router = router
        self._service_token = service_token
        self._clients: dict[str, str] = {}
        self._fetched_at: float | None = None
        self._problem = "its clients' tokens have not been fetched yet"

    async def keep_refreshed(self) -> None:
        """Fetch the hashes of the clients' tokens again and again, until cancelled."""
        while self._router.url is not None:
            try:
                await self.refresh()
            except Unavailable as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    log.warning("the clients' tokens cannot be fetched from the router", reason=self._problem)
            await asyncio.sleep(random.uniform(0.7, 1.3) * _REFRESH_S)

    async def refresh(self) -> None:
        """Fetch the hashes of the clients' tokens.

        Raises:
            Unavailable: the router does not answer, or refuses.
        """
        reply = await self._router.get("/v1/page-tokens", self._service_token.get_secret_value())
        if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise Unavailable(
                f"the router answered {reply.status_code}; set MOR_SERVICE_TOKEN to a token of scope service", _RETRY_S
            )
        try:
            found = _TOKENS.validate_json(reply.content, extra="ignore")
        except ValidationError as error:
            raise Unavailable("the router's answer is no list of tokens; is it older than run control?") from error
        self._clients = {token.sha256: token.client for token in found}
        self._fetched_at, self._problem = time.monotonic(), ""

    def holder(self, digest: str) -> Principal | None:
        found, client = self._file.holder(digest), self._clients.get(digest)
        if found is not None or client is None or not self._fresh():
            return found
        return Principal(name=client, scope=Scope.client)

    def _fresh(self) -> bool:
        return self._fetched_at is not None and time.monotonic() - self._fetched_at < _KEPT_S

    async def identify(self, token: str) -> Principal:
        """Return the owner of a token.

        Raises:
            Unauthorized: neither the file nor the router knows the token.
            Unavailable: the file does not know it, and the router's clients are not known at present.
        """
        found = self.holder(hash_token(token))
        if found is None and self._router.url is not None and not self._fresh():
            raise Unavailable(
                "the token is not in the tokens file, and the router's clients are not known at present; "
                "try again, and see the log of run control",
                _RETRY_S,
            )
        return known_holder(found)
