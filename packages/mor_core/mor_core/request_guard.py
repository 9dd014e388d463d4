"""Guard in front of every route: who calls, and how much, is settled before a byte of the body is read.

FastAPI parses a body before it resolves the dependency that checks the token. The guard therefore finds the route,
runs the check that the route itself declares by ``auth.require``, and passes on no more of the body than the route
takes.
"""

from __future__ import annotations

import asyncio
import contextlib

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mor_core import auth, problems
from mor_core.errors import Invalid, MorError, TooLarge, Unavailable
from mor_core.fair_share import FairShare
from mor_core.json_route import SMALL_BODY_BYTES, JsonRoute
from mor_core.settings import ServiceSettings

_MOST_QUERY_PARAMETERS = 64
"""Several times those of any route; each costs an object."""
_LINGER_S = 5.0
"""Longest time for which the rest of a refused body is read and thrown away. A connection that is closed with bytes
unread is reset, and the caller may never see the answer."""
_ANYONE = "(anyone)"
"""Caller of a route without a token."""


class RequestGuard:
    """ASGI middleware that authenticates, then limits: requests in progress, size, encoding and time of the body."""

    def __init__(self, app: ASGIApp, service: FastAPI, settings: ServiceSettings) -> None:
        self._app = app
        self._service = service
        self._settings = settings
        self._requests = FairShare(settings.max_requests)
        self._body_bytes = FairShare(settings.max_body_memory_bytes)
        self._checks: dict[int, tuple[auth.Check, ...]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})  # before it is accepted: the caller gets 403
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            route = self._route(scope)
            caller = await self._authenticate(route, scope)
            body = self._admit(route, scope, receive, caller)
            if caller != _ANYONE and not self._requests.take(caller):
                raise Unavailable(f"{self._requests.total} requests are in progress, MOR_MAX_REQUESTS; try again")
        except MorError as error:
            if isinstance(error, _BodyRefused):
                await _read_away(receive)
            await problems.of_error(error, {"Connection": "close"})(scope, receive, send)
            return
        if caller == _ANYONE:
            await self._app(scope, body.receive, send)
            return
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.forget()
            self._requests.give_back(caller)

    def _route(self, scope: Scope) -> APIRoute | None:
        """Return the API route that will answer; ``None`` for a page, a file, or no route."""
        for route in self._service.router.routes:
            if route.matches(scope)[0] is Match.FULL:
                return route if isinstance(route, APIRoute) else None
        return None

    async def _authenticate(self, route: APIRoute | None, scope: Scope) -> str:
        """Run the checks that ``route`` declares and return the caller's name.

        Raises:
            Unauthorized, Forbidden: the caller may not call the route.
        """
        if route is None:
            return _ANYONE
        checks = self._checks.get(id(route))
        if checks is None:
            checks = self._checks[id(route)] = auth.checks_of(route)
        if not checks:
            return _ANYONE
        principal = await auth.identified(Request(scope))
        matched = Request({**scope, **route.matches(scope)[1]})
        for check in checks:
            await check(matched, principal)
        return f"{principal.scope}:{principal.name}"

    def _admit(self, route: APIRoute | None, scope: Scope, receive: Receive, caller: str) -> BoundedBody:
        """Check what the request's head says about its size.

        Raises:
            _Compressed: the body is compressed.
            Invalid: there are too many query parameters.
            _BodyTooLarge: the declared length is over the route's limit.
        """
        if scope["query_string"].count(b"&") >= _MOST_QUERY_PARAMETERS:
            raise Invalid(f"over {_MOST_QUERY_PARAMETERS} query parameters; send the parameters that /docs lists")
        own = route.most_body_bytes if isinstance(route, JsonRoute) else SMALL_BODY_BYTES
        most = self._settings.max_request_bytes
        body = BoundedBody(
            receive, caller, most if own is None else min(own, most), self._settings.body_timeout_s, self._body_bytes
        )
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > body.most:
                raise _BodyTooLarge(body.refusal(f"the body has {int(value)} bytes"))
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise _Compressed(
                    f"content encoding {value[:40].decode('latin-1')!r}; send the body without compression"
                )
        return body


async def _read_away(receive: Receive) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass


class _BodyRefused(MorError):
    """The body of a caller who may call the route is not read."""


class _BodyTooLarge(_BodyRefused, TooLarge):
    pass


class _Compressed(_BodyRefused):
    status = 415
    title = "Unsupported media type"


class BoundedBody:
    """Body of one request: bounded in bytes, in time, and in its caller's share of the memory for bodies."""

    def __init__(self, receive: Receive, caller: str, most: int, timeout_s: float, memory: FairShare) -> None:
        self.most = most
        self._receive = receive
        self._caller = caller
        self._timeout_s = timeout_s
        self._memory = memory
        self._seen = 0
        self._held = 0
        self._complete = False
        self._deadline: float | None = None

    def refusal(self, found: str) -> str:
        """Return the message of a body over the limit."""
        return (
            f"{found}; request bodies are limited to {self.most} bytes; send fewer items or images in one request, or "
            "scale the images down"
        )

    async def receive(self) -> Message:
        """Receive the next part of the body.

        Raises:
            HTTPException: 413, 408 or 503, see the class. FastAPI's body parser passes on no other type.
        """
        if self._complete:
            return await self._receive()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(
                408, f"the body did not arrive in {self._timeout_s:g} s; send less in one request, or faster"
            ) from None
        if message["type"] != "http.request":
            return message
        part = len(message.get("body", b""))
        self._seen += part
        if self._seen > self.most:
            await _read_away(self._receive)
            raise HTTPException(413, self.refusal(f"got more than {self.most} bytes"))
        if part and not self._memory.take(self._caller, part):
            raise HTTPException(
                503, "other requests fill the memory for bodies; send fewer at a time", {"Retry-After": "1"}
            )
        self._held += part
        self._complete = not message.get("more_body", False)
        return message

    def forget(self) -> None:
        """Release the memory: the request has been answered."""
        self._memory.give_back(self._caller, self._held)
        self._held = 0
