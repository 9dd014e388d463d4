"""End of long requests whose token is no longer valid: event streams, downloads, answers that took long to make.

A token is checked when a request begins. ``WatchTokens`` checks it again every two seconds while a response is being
sent, and once before a late response begins.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mor_core import background, problems
from mor_core.errors import MorError, Unauthorized
from mor_core.token_file import Principal

_CHECK_S = 2.0
"""Seconds between checks of an open response's token: a removed token ends its streams within them."""
_KEY = "mor.watched"

Identify = Callable[[str], Awaitable[Principal]]

log = structlog.get_logger(__name__)


class _Watched:
    """A request, its token, and the progress of its response."""

    def __init__(self) -> None:
        self.began_at = time.monotonic()
        self.task = asyncio.current_task()
        self.token: str | None = None
        self.principal: Principal | None = None
        self.started = False
        self.sized = False
        """True if the response declared its length, so that it cannot end early in an orderly way."""
        self.over = False
        """True once the token is known to be invalid."""
        self.cancelled = 0
        """Cancellations by the sweeper."""

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
            self.cancelled += 1

    def uncancel(self) -> bool:
        """Take the sweeper's cancellations back; return whether they were the only ones."""
        left = [self.task.uncancel() for _ in range(self.cancelled)] if self.task is not None else []
        return bool(left) and left[-1] == 0


def note_token(scope: Scope, token: str, principal: Principal) -> None:
    """Record the token by which a request was admitted."""
    watched: _Watched | None = scope.get(_KEY)
    if watched is not None:
        watched.token, watched.principal = token, principal


class WatchTokens:
    """ASGI middleware that ends responses whose token was rotated or removed.

    ``identify`` returns the present holder of a token.
    """

    def __init__(self, app: ASGIApp, identify: Identify) -> None:
        self._app = app
        self._identify = identify
        self._open: set[_Watched] = set()
        self._sweeper: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watched = scope[_KEY] = _Watched()

        async def checked(message: Message) -> None:
            if watched.over:
                return  # the refusal was sent in place of the response
            if message["type"] == "http.response.start":
                if time.monotonic() - watched.began_at >= _CHECK_S and await self._is_over(watched):
                    watched.over = True
                    refusal = Unauthorized("the token was rotated or removed during the request; use its successor")
                    await problems.problem(refusal.status, refusal.title, str(refusal))(scope, receive, send)
                    return
                watched.started = True
                watched.sized = any(name == b"content-length" for name, _ in message["headers"])
            elif message.get("more_body"):
                self._watch(watched)
            await send(message)

        try:
            await self._app(scope, receive, checked)
        except asyncio.CancelledError:
            if not watched.uncancel():
                raise
            if not watched.sized:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._open.discard(watched)

    def _watch(self, watched: _Watched) -> None:
        """Check the token of a response in several parts until it ends."""
        self._open.add(watched)
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = background.start(self._sweep)

    async def _sweep(self) -> None:
        """Cancel responses whose token is invalid, until no response is open."""
        while self._open:
            await asyncio.sleep(_CHECK_S)
            for watched in list(self._open):
                if watched not in self._open:
                    continue  # it ended during this round
                if watched.over or await self._is_over(watched):
                    watched.over = True
                    watched.cancel()  # repeated in the next round if a library swallowed it

    async def _is_over(self, watched: _Watched) -> bool:
        if watched.token is None:
            return False
        try:
            return await self._identify(watched.token) != watched.principal
        except Unauthorized:
            return True
        except MorError as error:  # an outage of what knows the tokens is no revocation
            log.warning("an open response's token cannot be checked", reason=str(error))
            return False
        except Exception as error:  # nor is a fault, which must not end the checks of all other responses
            log.error("an open response's token cannot be checked", exc_info=error)
            return False
