"""Distrust that outlives a removal: a client that enrols again in place of a distrusted one begins distrusted.

Otherwise a client that audits convicted would delete itself with its page token, enrol again, and have weight from the
next fit on, at which it knows that it is tested.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from mor_core.clients import ClientName
from mor_core.stored import StoredEntries
from pydantic import TypeAdapter
from redis.asyncio import Redis

from mor_router.clients.registry import ClientRecord
from mor_router.store import key

_REMEMBERED_S = 90 * 86400
"""Seconds for which a removed client counts: longer than runs last."""
_NAME: TypeAdapter[str] = TypeAdapter(ClientName)
_FORMER = StoredEntries("former_distrust")


class FormerDistrust:
    """Distrusted clients that were removed, by name, address and enrolment token, in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def note(self, record: ClientRecord) -> None:
        """Remember a client that is removed, if it is distrusted, or was before a pause."""
        before = record.before_pause
        if record.distrusted_at is None and (before is None or before.distrusted_at is None):
            return
        for place in _places(record):
            await self._redis.set(place, record.name, ex=_REMEMBERED_S)

    async def of(self, record: ClientRecord) -> str | None:
        """Return the distrusted client that had this one's name, address or enrolment token; ``None``: there was none.

        Raises:
            RedisError: the server failed.
        """
        for place in _places(record):
            value: bytes | None = await _FORMER.read(place, _FORMER.fetch(self._redis, "GET", place), None)
            name = _FORMER.parse(place, value, lambda found: _NAME.validate_python(found.decode()))
            if name is not None:
                return name
        return None


def _places(record: ClientRecord) -> Iterator[str]:
    marks = {"name": record.name, "url": record.url, "token": record.enrolled_by}
    for kind, mark in marks.items():
        if mark is not None:
            yield key("former", kind, hashlib.sha256(mark.encode()).hexdigest())
