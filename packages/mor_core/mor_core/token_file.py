"""File of inbound bearer tokens, kept up to date.

The file is JSON: ``[{"name": "ops", "scope": "admin", "sha256": "<hex of the token>"}]``. A token is 32 random bytes,
so one SHA-256 protects it: a dictionary attack is impossible. Rotation: add the new hash, switch the callers, remove
the old hash. Replace the file in one step (rename); a file that cannot be used keeps the last good tokens in use.

A revocation raises the ``epoch`` of a name: entries of an earlier epoch are refused, in the file itself and in any
older file that comes back while the process runs.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import StringConstraints, TypeAdapter, ValidationError

from mor_core.errors import Invalid, Unauthorized
from mor_core.failures import describe, describe_failure
from mor_core.metrics import TOKENS_FILE_BROKEN
from mor_core.visibility import Scope
from mor_core.wire import Count, Sha256, Wire

_MOST_BYTES = 1 << 20
"""Largest tokens file: some 10,000 tokens, each of which is compared at every request."""
_RETRY_S = 1.0
"""Seconds after which a broken file is read again even if it seems unchanged."""
_OTHERS = stat.S_IROTH | stat.S_IWOTH

log = structlog.get_logger(__name__)


class Token(Wire):
    """Entry of the tokens file."""

    name: Annotated[str, StringConstraints(min_length=1)]
    """Name of the holder; for scope ``client`` the client's name."""
    scope: Scope
    sha256: Sha256
    epoch: Count = 0
    """Number of revocations of tokens of this name. Only the highest counts."""


class Principal(Wire):
    """Authenticated caller."""

    name: str
    scope: Scope


def new_token() -> str:
    """Create a token of 32 random bytes, URL-safe."""
    return secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Return whether a text can be one bearer token: a header takes ASCII, and no spaces inside a token."""
    return text.isascii() and len(text.split()) == 1


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class TokenFile:
    """Tokens of a service, read from a file and kept up to date.

    Raises:
        Invalid: the file cannot be used at the start.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._identity: tuple[int, ...] | None = None
        self._tokens: Sequence[Token] = ()
        self._epochs: dict[str, int] = {}
        """Name -> the highest epoch that was read."""
        self._retry_at: float | None = None
        if path is not None:
            try:
                self._load(path)
            except (OSError, Invalid) as error:
                raise Invalid(
                    f"tokens file {path}: {describe_failure(error)}; write a JSON list of {{name, scope, sha256}}"
                ) from error

    def _load(self, path: Path) -> None:
        """Read the file, and take its tokens if all are valid."""
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Invalid("it is no regular file")
            identity = _identity(status)
            content = file.read(_MOST_BYTES + 1)
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                log.warning("other users can read or write the tokens file; chmod o= it", file=path.name)
        tokens = parse_tokens(content)
        for token in tokens:
            self._epochs[token.name] = max(token.epoch, self._epochs.get(token.name, 0))
        self._tokens = [token for token in tokens if token.epoch == self._epochs[token.name]]
        if revoked := sorted({token.name for token in tokens if token not in self._tokens}):
            log.warning("revoked tokens are in the tokens file again and stay refused", names=revoked)
        self._identity, self._retry_at = identity, None
        TOKENS_FILE_BROKEN.set(0)

    def _refresh(self) -> None:
        """Read the file again if it was replaced or changed; keep the tokens while it cannot be used."""
        if self._path is None or (self._retry_at is not None and time.monotonic() < self._retry_at):
            return
        try:
            if self._retry_at is not None or _identity(self._path.stat()) != self._identity:
                self._load(self._path)
        except (OSError, Invalid) as error:
            if self._retry_at is None:  # once for each time that the file breaks
                log.error(
                    "the tokens file cannot be used; its last good tokens stay in use", reason=describe_failure(error)
                )
            self._retry_at = time.monotonic() + _RETRY_S
            TOKENS_FILE_BROKEN.set(1)

    def holder(self, digest: str) -> Principal | None:
        """Return the holder of the token with this hash, if any.

        Every stored hash is compared, so that the duration reveals nothing.
        """
        self._refresh()
        found: Principal | None = None
        for known in self._tokens:
            if hmac.compare_digest(known.sha256, digest):
                found = Principal(name=known.name, scope=known.scope)
        return found

    async def identify(self, token: str) -> Principal:
        """Return the holder of a request's token; services with tokens outside the file override this.

        Raises:
            Unauthorized: the token is unknown.
        """
        return known_holder(self.holder(hash_token(token)))


def known_holder(found: Principal | None) -> Principal:
    """Return the holder that was found.

    Raises:
        Unauthorized: none was.
    """
    if found is None:
        raise Unauthorized("unknown bearer token; request one from the platform team, or rotate yours")
    return found


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for the writer of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written, also when a symbolic link in its path is swapped."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def parse_tokens(content: bytes) -> list[Token]:
    """Parse a tokens file. Messages contain no entry, since callers may read the log.

    Raises:
        Invalid: it is too large, malformed, or names a token twice.
    """
    if len(content) > _MOST_BYTES:
        raise Invalid(f"it is larger than {_MOST_BYTES} bytes")
    try:
        tokens = TypeAdapter(list[Token]).validate_json(content)
    except ValidationError as error:
        raise Invalid(describe(error)) from None
    first: dict[str, int] = {}
    for place, token in enumerate(tokens):
        if first.setdefault(token.sha256, place) != place:
            raise Invalid(
                f"entries {first[token.sha256]} and {place} have the same sha256, so that the holder is ambiguous; "
                "give each holder a token of its own"
            )
    return tokens
