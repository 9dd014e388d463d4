"""Tokens of callers of the reward service."""

from __future__ import annotations

import json
from pathlib import Path

from mor_core import atomic
from mor_core.auth import Scope, hash_token, new_token
from mor_core.errors import Conflict, Invalid
from mor_core.failures import describe_failure


def issue(tokens_file: Path, name: str, scope: Scope) -> str:
    """Create a token, add its hash to ``tokens_file`` (created if absent) and return the token, which is not stored.

    Raises:
        Conflict: the file has a token of that name.
        Invalid: the name is empty, or the file is not a list of tokens.
    """
    if not name:
        raise Invalid("--name is empty; give the name of the token's holder")
    known: list[dict[str, str]] = []
    if tokens_file.exists():
        try:
            known = json.loads(tokens_file.read_text())
            names = {entry["name"] for entry in known}
        except (ValueError, KeyError, TypeError) as error:
            raise Invalid(
                f"{tokens_file} is not a list of {{name, scope, sha256}} ({describe_failure(error)}); repair or move it"
            ) from error
        if name in names:
            raise Conflict(
                f"{tokens_file} holds a token named {name!r}; choose another --name, or delete that entry first"
            )
    token = new_token()
    entry = {"name": name, "scope": scope.value, "sha256": hash_token(token)}
    atomic.write(tokens_file, json.dumps([*known, entry], indent=2).encode() + b"\n", mode=0o600)
    return token
