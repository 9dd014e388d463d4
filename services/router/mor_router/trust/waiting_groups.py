"""Groups without a label, in Redis: audits, proposed pairs, and the candidates for proposals.

A group waits with its question, pictures and responses. The name of each states when it was stored and its size, so
that the bounds need no look at the stored groups.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mor_core.errors import Invalid
from mor_core.image_budget import check_named
from mor_core.stored import StoredEntries
from redis.asyncio import Redis

from mor_router.store import key
from mor_router.trust.audit_types import LiveAudit

MOST_BYTES = 64 << 20
"""Bytes of one objective's groups of a kind: pictures, question and responses."""
_NAME_DIGITS = 12
"""Hexadecimal digits of the time in a group's name: milliseconds, for 8,900 years. The KiB of its content follow."""
_NAME = re.compile(rf"[0-9a-f]{{{_NAME_DIGITS}}}-[0-9a-f]{{1,8}}-[A-Za-z0-9_-]{{1,40}}")


@dataclass
class WaitingGroups:
    """Groups of one kind, by objective."""

    redis: Redis
    kind: str
    """Hash of the groups, one of ``store.KINDS``."""
    most: int
    """Groups of one objective."""
    most_bytes: int = MOST_BYTES
    """Bytes of their pictures, questions and responses."""
    _entries: StoredEntries = field(init=False)

    def __post_init__(self) -> None:
        # base64 and JSON lengthen what is waiting
        self._entries = StoredEntries(self.kind, largest=2 * MOST_BYTES)

    async def add(self, objective: str, audit: LiveAudit, at: float) -> int:
        """Store a group that waits since the Unix time ``at``, drop the oldest ones over the bounds, and return how
        many were dropped."""
        name = audit_name(audit, at)
        if size_of(name) > self.most_bytes:
            return 1
        await self.put(objective, name, audit)
        names = await self.names(objective)
        total, dropped = sum(map(size_of, names)), 0
        for gone, oldest in enumerate(names):
            if len(names) - gone <= self.most and total <= self.most_bytes:
                break
            dropped += await self.remove(objective, oldest)
            total -= size_of(oldest)
        return dropped

    async def put(self, objective: str, name: str, audit: LiveAudit) -> None:
        """Store a group under its name, whatever the bounds."""
        value = await asyncio.to_thread(audit.model_dump_json)
        place = key(self.kind, objective)
        await self._entries.write(self.redis, {place: "hash"}, lambda: self.redis.hset(place, name, value))

    async def replace(self, objective: str, audits: Sequence[LiveAudit], at: float) -> None:
        """Store groups, which are within the bounds, in place of all others."""
        names = {audit_name(audit, at + row / 1000): audit for row, audit in enumerate(audits)}
        values = await asyncio.to_thread(lambda: {name: audit.model_dump_json() for name, audit in names.items()})
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.delete(key(self.kind, objective))
            for name, value in values.items():
                pipe.hset(key(self.kind, objective), name, value)
            await pipe.execute()

    def check_bounds(self, audits: Sequence[LiveAudit]) -> None:
        """Check that groups can be stored together.

        Raises:
            Invalid: they are too many, or too large.
        """
        total = 1024 * sum(map(_kibibytes, audits))
        if len(audits) > self.most or total > self.most_bytes:
            raise Invalid(
                f"{len(audits)} pairs with {total / (1 << 20):.1f} MiB of pictures and texts; at most {self.most} "
                f"pairs and {self.most_bytes >> 20} MiB are kept; send fewer pairs, or smaller pictures"
            )

    async def names(self, objective: str) -> list[str]:
        """Return the names of the groups, oldest first."""
        place = key(self.kind, objective)
        names: list[bytes] = await self._entries.read(place, self._entries.fetch(self.redis, "HKEYS", place), [])
        return sorted(self._entries.parse_list(names, partial(parse_name, most_bytes=self.most_bytes)))

    async def get(self, objective: str, name: str) -> tuple[LiveAudit | None, bool]:
        """Return a group, ``None`` where there is none; and whether it was removed because it cannot be read."""
        place = key(self.kind, objective)
        value: Any = await self._entries.read(place, self._entries.fetch(self.redis, "HGET", place, name), None)
        audit = await asyncio.to_thread(self._entries.parse, name, value, _live)
        broken = audit is None and value is not None
        return audit, broken and bool(await self._entries.delete(self.redis, place, {name: value}))

    async def all(self, objective: str) -> dict[str, LiveAudit]:
        """Return the groups by name, oldest first; without their pictures, to bound the memory."""
        found = {}
        for name in await self.names(objective):
            audit, _ = await self.get(objective, name)
            if audit is not None:
                found[name] = audit.model_copy(update={"images": {}})
        return found

    async def remove(self, objective: str, name: str) -> bool:
        """Remove a group; return whether it still waited."""
        place = key(self.kind, objective)
        return bool(await self._entries.read(place, self.redis.hdel(place, name), 0))


def _kibibytes(audit: LiveAudit) -> int:
    """Return the size of what clients saw of a group, which tells a person nothing about their scores."""
    texts = [message.text for message in audit.messages] + list(audit.responses)
    return 1 + (sum(map(len, audit.images.values())) + sum(len(text.encode()) for text in texts)) // 1024


def audit_name(audit: LiveAudit, at: float) -> str:
    """Make the name of a group that waits since the Unix time ``at``, in seconds."""
    return f"{round(1000 * at):0{_NAME_DIGITS}x}-{_kibibytes(audit):x}-{secrets.token_urlsafe(8)}"


def parse_name(content: bytes, *, most_bytes: int = MOST_BYTES) -> str:
    """Parse the name of a waiting group.

    Raises:
        Invalid: it is none, or it states a size that no stored group has: others would have to go for it.
        ValueError: it is no text.
    """
    name = content.decode()
    if not _NAME.fullmatch(name) or size_of(name) > most_bytes:
        raise Invalid("this is not the name of a waiting group")
    return name


def _live(content: bytes) -> LiveAudit:
    """Parse a waiting group. Its pictures become those of an anchor, so each must be the one that its hash names.

    Raises:
        ValueError: it does not fit.
        Invalid: a picture has another hash.
    """
    audit = LiveAudit.model_validate_json(content, extra="ignore")
    check_named(audit.images)
    return audit


def size_of(name: str) -> int:
    """Return the bytes that the name of a group states."""
    return 1024 * int(name.split("-")[1], 16)


def chosen_at(name: str) -> float:
    """Return the Unix time, in seconds, from which the group of this name waits."""
    return int(name[:_NAME_DIGITS], 16) / 1000
