"""Seals of stored JSON objects: a first field with the SHA-256 of the rest, by which a damaged file is found.

A flipped bit in a number leaves valid JSON, so that no parser notices it. A sealed file is still a JSON object.
"""

from __future__ import annotations

import hashlib
import re

from mor_core.errors import Invalid

_SEAL = re.compile(rb'\{"sha256":"([0-9a-f]{64})",')


def seal(content: bytes) -> bytes:
    """Return a JSON object that has fields, with its seal."""
    rest = content[1:]
    return b'{"sha256":"%s",%s' % (hashlib.sha256(rest).hexdigest().encode(), rest)


def unseal(content: bytes) -> bytes:
    """Return the object without its seal. Content that earlier versions wrote has none, and is returned as it is.

    Raises:
        Invalid: the content is not what was sealed.
    """
    found = _SEAL.match(content)
    if found is None:
        return content
    rest = content[found.end() :]
    digest = hashlib.sha256(rest).hexdigest()
    if digest != found[1].decode():
        raise Invalid(f"its SHA-256 is {digest[:12]}…, it was written with {found[1].decode()[:12]}…")
    return b"{" + rest
