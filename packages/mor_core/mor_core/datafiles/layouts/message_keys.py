"""Check of the keys of messages and their parts: what is not read is refused, because it may change the meaning."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from mor_core.errors import Invalid

_SHOWN_CHARACTERS = 60
_SHOWN_KEYS = 5
"""Unknown keys of a message that an error lists."""


def check_keys(given: dict[str, Any], known: Set[str], column: str) -> None:
    """Check that a message or a part of one says nothing that is not read; empty values say nothing.

    Raises:
        Invalid: it has another key, such as ``tool_calls``.
    """
    unknown = sorted(str(key)[:_SHOWN_CHARACTERS] for key, value in given.items() if key not in known and value)
    if unknown:
        raise Invalid(
            f"{column}: a message has {', '.join(map(repr, unknown[:_SHOWN_KEYS]))}, which is not read (read are "
            f"{', '.join(sorted(known))}); take it out of the message, or leave the row out"
        )
