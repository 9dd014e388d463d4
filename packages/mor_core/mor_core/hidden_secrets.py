"""Removal of secrets from text that leaves the process: log lines, traces, error messages.

Two kinds are found: secrets that the process was given (``remember``), in the forms in which libraries quote them, and
text that looks like one: credentials in a URL, a bearer token, a query parameter that is named after a secret.
"""

from __future__ import annotations

import base64
import json
import os
import re
from urllib.parse import parse_qsl, quote, quote_plus, unquote

HIDDEN = "[hidden]"
_SHORTEST = 8
"""Characters of the shortest secret that is remembered: a shorter word occurs by chance and would shred the logs."""
_NAMES = (
    "token|secret|password|passwd|credential|authorization|(?:api|private|account)[-_]?key|connection[-_]?string|"
    "signature"
)
SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
"""Pattern of the names of fields, parameters and variables that hold a secret."""
_LOOKS_SECRET = (
    (re.compile(r"(?<=://)[^\s/\"'<>?#]*@"), f"{HIDDEN}@"),
    (re.compile(r"\b(bearer|basic)(\s+|%20)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1\2{HIDDEN}"),
    (re.compile(rf"(?<=[?&#;])([\w-]*(?:{_NAMES}|key|sig)[\w-]*)=[^&\s\"'#<>]+", re.IGNORECASE), rf"\1={HIDDEN}"),
)
_ELSEWHERE = re.compile(r"_(FILE|PATH|DIR|URL|URI|ENDPOINT)$")
"""Names of variables whose value says where a secret is."""

_forms: set[str] = set()
_known: re.Pattern[str] | None = None


def remember(*secrets: str) -> None:
    """Remove these secrets from all text from now on; those under 8 characters are left out."""
    global _known  # noqa: PLW0603
    new = {form for secret in secrets if len(secret) >= _SHORTEST for form in _written(secret)} - _forms
    if new:
        _forms.update(new)
        _known = re.compile("|".join(map(re.escape, sorted(_forms, key=len, reverse=True))))


def remember_environment() -> None:
    """Remember the secrets of libraries that this process finds in its environment, such as ``HF_TOKEN``."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and not _ELSEWHERE.search(name):
            remember(value)


def remember_address(url: str) -> None:
    """Remember the password in a URL, which may list several hosts, and its parameters that are named after one."""
    whole, _, query = url.partition("#")[0].partition("?")
    _, separator, rest = whole.partition("://")
    credentials, at, _ = rest.partition("/")[0].rpartition("@")
    password = credentials.partition(":")[2] if separator and at else ""
    found = [value for name, value in parse_qsl(query) if separator and SECRET_NAME.search(name)]
    remember(password, unquote(password), *found)


def hide_secrets(text: str) -> str:
    """Return ``text`` without the secrets that are known or look like one."""
    if _known is not None:
        text = _known.sub(HIDDEN, text)
    for pattern, replacement in _LOOKS_SECRET:
        text = pattern.sub(replacement, text)
    return text


def _written(secret: str) -> set[str]:
    """Return the forms of a secret in text: plain, in a URL, in JSON, and inside base64 at each alignment."""
    raw = secret.encode(errors="surrogatepass")
    forms = {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw).rstrip(b"=")
        # The characters at both ends also hold bits of the neighbours.
        core = encoded[-(-8 * offset // 6) : 8 * (offset + len(raw)) // 6].decode()
        forms |= {core, core.replace("+", "-").replace("/", "_")}
    return forms
