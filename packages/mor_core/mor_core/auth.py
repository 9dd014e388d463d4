"""Authentication of requests, and the access that each route declares: ``require`` or ``public``."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from mor_core.errors import Forbidden, Unauthorized
from mor_core.token_file import Principal, Token, TokenFile, hash_token, new_token
from mor_core.token_watch import note_token
from mor_core.visibility import HiddenFrom, OwnRows, Scope, marked_fields, models_in

__all__ = [
    "Access",
    "Principal",
    "Scope",
    "Token",
    "TokenFile",
    "access_of",
    "caller",
    "checks_of",
    "hash_token",
    "identified",
    "marks_of",
    "new_token",
    "public",
    "require",
]

Check = Callable[[Request, Principal], Awaitable[Principal]]
"""Check of an authenticated caller's rights, made by ``require``."""
E = TypeVar("E")

_IDENTIFIED = "mor_core.auth.principal"
"""Key of the caller in a request's ASGI scope, so that one request looks its token up once."""
_bearer = HTTPBearer(auto_error=False, description="Scoped bearer token.")


@dataclass(frozen=True)
class Access:
    """Callers that a route admits."""

    scopes: frozenset[Scope] | None
    """Scopes of the tokens; ``None``: no token is needed."""
    own: str | None = None
    """Path parameter that must be the caller's own name, for a token of scope ``client``."""


async def _principal(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Principal:
    if (known := request.scope.get(_IDENTIFIED)) is not None:
        principal: Principal = known
        return principal
    token = _password(request) if credentials is None else credentials.credentials
    if token is None:
        raise Unauthorized("no bearer token; send 'Authorization: Bearer <token>'")
    tokens: TokenFile = request.app.state.tokens
    found = await tokens.identify(token)
    if credentials is None and found.scope is not Scope.scorer:  # a browser repeats a password for pages of others
        raise Unauthorized(
            "the password of HTTP's Basic scheme may be a token of scope scorer only; send a bearer token"
        )
    request.scope[_IDENTIFIED] = found
    note_token(request.scope, token, found)
    return found


def _password(request: Request) -> str | None:
    """Return the password of HTTP's Basic scheme, if it is used: trainers whose only setting is an address send the
    token in it, as in ``https://token:TOKEN@host``, or take it from ``~/.netrc``."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError as error:
        raise Unauthorized("'Authorization: Basic' holds no base64 of 'name:token'; send a bearer token") from error


async def identified(request: Request) -> Principal:
    """Return the sender of ``request`` by its head alone.

    Raises:
        Unauthorized: the token is missing or unknown.
    """
    return await _principal(request, await _bearer(request))


async def caller(request: Request, *scopes: Scope) -> Principal:
    """Authenticate the sender of ``request`` like ``require``, where FastAPI resolves no dependencies.

    Raises:
        Unauthorized: the token is missing or unknown.
        Forbidden: the caller has none of ``scopes``.
    """
    return await require(*scopes)(request, await identified(request))


def require(*scopes: Scope, own: str | None = None) -> Check:
    """Make a FastAPI dependency that requires one of ``scopes``; scope admin always passes.

    With ``own``, a token of scope ``client`` passes only where the path parameter of that name is its own name. Use as
    ``caller: Annotated[Principal, Depends(require(Scope.viewer))]``. Needs ``app.state.tokens``, which
    ``mor_core.service.create_service`` sets.
    """
    access = Access(frozenset({Scope.admin, *scopes}), own)
    needed = " or ".join(sorted(access.scopes or ()))

    async def check(request: Request, principal: Annotated[Principal, Depends(_principal)]) -> Principal:
        if principal.scope not in (access.scopes or ()):
            raise Forbidden(f"token {principal.name!r} has scope {principal.scope}; use one of scope {needed}")
        if own is not None and principal.scope is Scope.client and request.path_params[own] != principal.name:
            raise Forbidden(
                f"the token of client {principal.name!r} shows its own figures only; put its name into the path"
            )
        return principal

    check.__dict__["access"] = access
    return check


def public(endpoint: E) -> E:
    """Declare that a route's function, or a mounted app, needs no token."""
    endpoint.__dict__["access"] = Access(None)
    return endpoint


def access_of(route: Any) -> Access | None:
    """Return the access that a route or mount declares; ``None``: it declares none."""
    declared = getattr(getattr(route, "endpoint", None) or getattr(route, "app", None), "access", None)
    if declared is not None or not hasattr(route, "dependant"):
        return declared
    found = [check.__dict__["access"] for check in checks_of(route)]
    if not found:
        return None
    admitted = frozenset.intersection(*(access.scopes or frozenset(Scope) for access in found))
    return Access(admitted, next((access.own for access in found if access.own is not None), None))


def checks_of(route: APIRoute) -> tuple[Check, ...]:
    """Return the checks of the caller that a route's dependencies declare."""
    return tuple(part.call for part in _parts(route.dependant) if hasattr(part.call, "access"))


def marks_of(route: APIRoute) -> Iterator[tuple[str, HiddenFrom | OwnRows]]:
    """Yield path and mark of each field of a route's answer that some callers do not get."""
    answer = route.response_model or route.responses.get(200, {}).get("model")
    for model in models_in(answer):
        for path, mark in marked_fields(model):
            yield path.removeprefix("root."), mark


def _parts(dependant: Dependant) -> Iterator[Any]:
    """Yield the dependencies below ``dependant``."""
    for part in dependant.dependencies:
        yield part
        yield from _parts(part)
