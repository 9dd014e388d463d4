"""Transcripts of Anthropic's HH data and those after it: a text with ``Human:`` and ``Assistant:`` before each turn."""

from __future__ import annotations

import re
from typing import Any

_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def turns_of(cell: Any) -> Any:
    """Return the messages of a transcript; another cell as it is."""
    if not isinstance(cell, str) or _TURN.match(cell) is None:
        return cell
    _, *parts = _TURN.split(cell)
    return [{"role": _ROLES[name], "content": text} for name, text in zip(parts[::2], parts[1::2], strict=True)]
