"""Parser of JSON in data files that refuses what readers disagree about."""

from __future__ import annotations

import json
from typing import Any


class DuplicateName(ValueError):
    """An object has a name twice, and readers disagree about which of the two values holds."""


def load(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        DuplicateName: an object in it has a name twice; the message is the name.
        ValueError, RecursionError: as ``json.loads``.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of an object as a dictionary."""
    found = dict(members)
    if len(found) < len(members):
        names = [name for name, _ in members]
        raise DuplicateName(next(name for name in names if names.count(name) > 1))
    return found
