"""Inbound bearer tokens: scoped, stored hashed, compared in constant time, rotatable by editing one file.

The tokens file is JSON: ``[{"name": "ops", "scope": "admin", "sha256": "<hex of the token>"}]``. A token is 32 random
bytes, so one SHA-256 is enough to store it: there is no dictionary to try. Rotation: add the new hash, move callers,
remove the old one; the file is read again when its modification time changes.
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
    admin = "admin"
    """Everything, other scopes' rights included."""
    service = "service"
    """What MoR's own processes ask of each other: weights, score calls, run heartbeats."""
    enrolment = "enrolment"
    """Enrolling a client at the router, and nothing else."""
    client = "client"
    """One client's own figures."""
    viewer = "viewer"
    """Reading status."""


class Token(Wire):
    name: str
    """Who holds it; for scope ``client`` the client's name."""
    scope: Scope
    sha256: Sha256


class Principal(Wire):
    """Who is calling."""

    name: str
    scope: Scope


def new_token() -> str:
    """A fresh token: 32 random bytes, URL-safe."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class TokenFile:
    """The tokens of a service, read from a file and kept current."""

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
            raise Invalid(
                f"tokens file {self._path}: {error}; it must be a JSON list of {{name, scope, sha256}}"
            ) from error

    def authenticate(self, token: str) -> Principal:
        """The caller that ``token`` belongs to. Every stored hash is compared, so the time tells nothing.

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
            raise Unauthorized("unknown bearer token; ask the platform team for one, or rotate yours")
        return found

    async def identify(self, token: str) -> Principal:
        """The same for a request; a service whose tokens are not all in the file asks elsewhere too.

        Raises:
            Unauthorized: the token is unknown.
        """
        return self.authenticate(token)


_bearer = HTTPBearer(auto_error=False, description="Scoped bearer token.")


async def _principal(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Principal:
    if credentials is None:
        raise Unauthorized("send 'Authorization: Bearer <token>'")
    tokens: TokenFile = request.app.state.tokens
    return await tokens.identify(credentials.credentials)


async def caller(request: Request, *scopes: Scope) -> Principal:
    """Who sent ``request``, checked as ``require`` does, where FastAPI resolves no dependencies.

    Raises:
        Unauthorized: no token, or an unknown one.
        Forbidden: the caller holds none of ``scopes``.
    """
    return await require(*scopes)(await _principal(request, await _bearer(request)))


def require(*scopes: Scope) -> Callable[[Principal], Awaitable[Principal]]:
    """FastAPI dependency: the caller must hold one of ``scopes`` (admin may always).

    Use as ``caller: Annotated[Principal, Depends(require(Scope.viewer))]``. Needs ``app.state.tokens``, which
    ``mor_core.service.create_service`` sets.
    """
    allowed = {Scope.admin, *scopes}

    async def check(principal: Annotated[Principal, Depends(_principal)]) -> Principal:
        if principal.scope not in allowed:
            wanted = " or ".join(sorted(allowed))
            raise Forbidden(f"token {principal.name!r} has scope {principal.scope}; this needs {wanted}")
        return principal

    return check
