"""Changes of a tokens file by hand: new tokens and revocations. ``mor_core.token_file`` describes the file."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mor_core import atomic
from mor_core.errors import Conflict, Invalid, NotFound
from mor_core.failures import describe_failure
from mor_core.token_file import Token, hash_token, new_token, parse_tokens
from mor_core.visibility import Scope


def issue(tokens_file: Path, name: str, scope: Scope) -> str:
    """Create a token, add its hash to ``tokens_file`` (created if absent) and return the token, which is not stored.

    Raises:
        Conflict: the file has a token of that name.
        Invalid: the name is empty or not printable, or the file is not a list of tokens or cannot be written.
    """
    if not name:
        raise Invalid("the name is empty; give the name of the token's holder")
    if not name.isprintable():
        raise Invalid(f"the name {name!r} has characters that are not printed; give a name of one line")
    with _changing(tokens_file):
        known = listed(tokens_file) if tokens_file.exists() else []
        if name in {token.name for token in known}:
            raise Conflict(
                f"{tokens_file} holds a token named {name!r}; choose another name, or revoke that token first"
            )
        secret = new_token()
        _write(tokens_file, [*known, Token(name=name, scope=scope, sha256=hash_token(secret))])
    return secret


def revoke(tokens_file: Path, name: str) -> int:
    """Remove the tokens of a name from the file; return how many there were.

    Raises:
        NotFound: the file has no token of that name.
        Invalid: the file is not a list of tokens, or cannot be written.
    """
    with _changing(tokens_file):
        known = listed(tokens_file)
        left = [token for token in known if token.name != name]
        if len(left) == len(known):
            names = ", ".join(sorted({token.name for token in known})) or "none"
            raise NotFound(f"{tokens_file} holds no token named {name!r}; its names are: {names}")
        _write(tokens_file, left)
    return len(known) - len(left)


def listed(tokens_file: Path) -> list[Token]:
    """Return the entries of a tokens file.

    Raises:
        Invalid: the file cannot be read, or is not a list of tokens.
    """
    try:
        return parse_tokens(tokens_file.read_bytes())
    except OSError as error:
        raise Invalid(f"{tokens_file}: {error.strerror}; name the tokens file of the service") from error
    except Invalid as error:
        raise Invalid(f"{tokens_file} is not a list of {{name, scope, sha256}} ({error}); repair or move it") from None


@contextmanager
def _changing(tokens_file: Path) -> Iterator[None]:
    """Keep other commands from changing the file meanwhile."""
    try:
        tokens_file.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(tokens_file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
    except OSError as error:
        raise Invalid(f"{tokens_file}: {describe_failure(error)}; name a writable file") from error


def _write(tokens_file: Path, tokens: Sequence[Token]) -> None:
    rows = [token.model_dump(mode="json", exclude_defaults=True) for token in tokens]
    atomic.write(tokens_file, json.dumps(rows, indent=2).encode() + b"\n", mode=0o600)
