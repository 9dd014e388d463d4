"""Size of what is stored for an objective, before it is deleted."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from mor_core.bounded_reads import Oversized
from mor_core.errors import NotFound
from mor_core.stored import StoredEntries
from mor_core.stored_objectives import DeletedObjective, Objective
from redis.asyncio import Redis

from mor_router.store import ANCHORS, KINDS, OBJECTIVES, key

_ENTRIES = StoredEntries("objectives", largest=256 << 20)


async def measure_objective(redis: Redis, name: str) -> DeletedObjective:
    """Return what is stored for an objective, whether or not it can be read.

    Raises:
        NotFound: no such objective.
    """
    stored: Any = await _ENTRIES.fetch(redis, "HGET", OBJECTIVES, name)
    if stored is None:
        raise NotFound(f"no objective {name!r}; POST /v1/objectives creates one")
    objective = _ENTRIES.parse(name, stored, lambda given: Objective.model_validate_json(given, extra="ignore"))
    anchors: Any = await _ENTRIES.fetch(redis, "HGET", ANCHORS, name)
    hashes = [await _stored_bytes(redis, key(kind, name)) for kind in KINDS]
    return DeletedObjective(
        objective=name,
        anchors=0 if objective is None else objective.anchors,
        gate_versions=await redis.hlen(key("gates", name)),
        bytes=_length(stored) + (0 if anchors is None else _length(anchors)) + sum(hashes),
    )


async def _stored_bytes(redis: Redis, place: str) -> int:
    """Return the bytes of the fields and values of a hash."""
    size = 0
    async with aclosing(_ENTRIES.fetch_pages(redis, place)) as pages:
        async for page in pages:
            size += sum(len(field) + _length(value) for field, value in page.items())
    return size


def _length(value: Any) -> int:
    """Return the bytes of a stored value, also of one that is too large to be read."""
    return int(value.bytes) if isinstance(value, Oversized) else len(value)
