"""Pages of list routes: ``limit`` entries after the entry ``after``, which is the last of the page before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query

T = TypeVar("T")

MOST_ENTRIES = 1000
"""Entries of a page, and the default: more than an installation has, and under 2 MB even of clients with long texts."""

PageLimit = Annotated[int, Query(ge=1, le=MOST_ENTRIES, description="Largest number of entries.")]
After = Annotated[
    str | None, Query(max_length=200, description="Entries that follow this one, the last of the page before.")
]


def page(entries: Sequence[T], identity: Callable[[T], str], after: str | None, limit: int) -> list[T]:
    """Return the page that follows the entry ``after``; an empty one where there is no such entry."""
    start = 0
    if after is not None:
        start = next((place + 1 for place, entry in enumerate(entries) if identity(entry) == after), len(entries))
    return list(entries[start : start + limit])
