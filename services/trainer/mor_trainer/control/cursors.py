"""Cursors of the event stream, which a reader sends back as ``Last-Event-ID``."""

from __future__ import annotations

import re

from mor_core.errors import Invalid

_NUMBER = re.compile("[0-9]{1,18}")
"""An id of the database, which has at most 63 bits."""


def event_cursor(run: str, event: int) -> str:
    """Return the cursor of an event."""
    return f"{run}/{event}"


def parse_cursor(run: str, text: str) -> int:
    """Return the event id of a cursor.

    Raises:
        Invalid: no cursor, or one of another run.
    """
    owner, _, number = text.rpartition("/")
    if owner != run or not _NUMBER.fullmatch(number):
        raise Invalid(
            f"Last-Event-ID {text[:80]!r} is not a cursor of run {run}; send the id of an event of this run, or none "
            "to start from now"
        )
    return int(number)
