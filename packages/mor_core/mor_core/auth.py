"""Inbound bearer tokens: scoped, stored hashed, compared in constant time, rotatable by editing one file.

The tokens file is JSON: ``[{"name": "ops", "scope": "admin", "sha256": "<hex of the token>"}]``. A token is 32 random
bytes, so one SHA-256 protects it: a dictionary attack is impossible. Rotation: add the new hash, switch the callers,
remove the old hash; the service reads the file again when its modification time changes.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import TypeAdapter, ValidationError

from mor_core.errors import Forbidden, Invalid, Unauthorized
from mor_core.wire import Sha256, Wire


class Scope(enum.StrEnum):
    """Rights of a token."""

    admin = "admin"
    """All rights, including those of the other scopes."""
    service = "service"
    """Calls between MoR's own processes: weights, scores, run heartbeats."""
    enrolment = "enrolment"
    """Enrol a client at the router."""
    client = "client"
    """Read the figures of one client."""
    viewer = "viewer"
    """Read status."""
    labeller = "labeller"
    """Label audited groups, for a person: sees their questions, pictures and two responses."""


class Token(Wire):
    """Entry of the tokens file."""

    name: str
    """Name of the holder; for scope ``client`` the client's name."""
    scope: Scope
    sha256: Sha256


class Principal(Wire):
    """Authenticated caller."""

    name: str
    scope: Scope


def new_token() -> str:
    """Create a token of 32 random bytes, URL-safe."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class TokenFile:
    """Tokens of a service, read from a file and kept up to date."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._modified: float | None = None
        self._tokens: list[Token] = []
        self._refresh()

    def _refresh(self) -> None:
        if self._path is None:
            return
        try:
            modified = self._path.stat().st_mtime
            if modified != self._modified:
                self._tokens = TypeAdapter(list[Token]).validate_json(self._path.read_bytes())
                self._modified = modified
        except (OSError, ValidationError) as error:
            raise Invalid(f"tokens file {self._path}: {error}; write a JSON list of {{name, scope, sha256}}") from error

    def authenticate(self, token: str) -> Principal:
        """Return the holder of ``token``. Every stored hash is compared, so that the duration reveals nothing.

        Raises:
            Unauthorized: the token is unknown.
        """
        self._refresh()
        digest = hash_token(token)
        found: Principal | None = None
        for known in self._tokens:
            if hmac.compare_digest(known.sha256, digest):
                found = Principal(name=known.name, scope=known.scope)
        if found is None:
            raise Unauthorized("unknown bearer token; request one from the platform team, or rotate yours")
        return found

    async def identify(self, token: str) -> Principal:
        """Return the holder of a request's token; services with tokens outside the file override this.

        Raises:
            Unauthorized: the token is unknown.
        """
        return self.authenticate(token)


_bearer = HTTPBearer(auto_error=False, description="Scoped bearer token.")


async def _principal(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Principal:
    if credentials is None:
        raise Unauthorized("no bearer token; send 'Authorization: Bearer <token>'")
    tokens: TokenFile = request.app.state.tokens
    return await tokens.identify(credentials.credentials)


async def caller(request: Request, *scopes: Scope) -> Principal:
    """Authenticate the sender of ``request`` like ``require``, where FastAPI resolves no dependencies.

    Raises:
        Unauthorized: the token is missing or unknown.
        Forbidden: the caller has none of ``scopes``.
    """
    return await require(*scopes)(await _principal(request, await _bearer(request)))


def require(*scopes: Scope) -> Callable[[Principal], Awaitable[Principal]]:
    """Make a FastAPI dependency that requires one of ``scopes``; scope admin always passes.

    Use as ``caller: Annotated[Principal, Depends(require(Scope.viewer))]``. Needs ``app.state.tokens``, which
    ``mor_core.service.create_service`` sets.
    """
    allowed = {Scope.admin, *scopes}

    async def check(principal: Annotated[Principal, Depends(_principal)]) -> Principal:
        if principal.scope not in allowed:
            needed = " or ".join(sorted(allowed))
            raise Forbidden(f"token {principal.name!r} has scope {principal.scope}; this needs {needed}")
        return principal

    return check
