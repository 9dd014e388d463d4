"""Reader of the router's state for snapshots: of what is stored apart it fetches only what is new."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from mor_core.stored import StoredEntries
from redis.asyncio import Redis

from mor_router.snapshots.saved_state import is_apart
from mor_router.store import KINDS, RouterSnapshot, export, key, objective_names

_APART = StoredEntries("router_snapshots", largest=256 << 20)
_FETCHED = 16
"""Values that one command fetches: with the largest pictures some hundred megabytes."""


class StateReader:
    """Reader of one router's state."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._digests: dict[tuple[str, str], str] = {}
        """Hash and field -> SHA-256 of the value, which never changes."""

    def forget(self) -> None:
        """Read everything anew, after the state was replaced."""
        self._digests = {}

    async def read(
        self, missing: Callable[[set[str]], set[str]]
    ) -> tuple[RouterSnapshot, dict[str, dict[str, str]], dict[str, bytes]]:
        """Return the state, the digests of what is stored apart, and those values that ``missing`` names.

        Raises:
            RedisError: the server failed.
        """
        state = await export(self._redis, is_apart)
        names = [f"{kind}:{name}" for name in await objective_names(self._redis) for kind in KINDS]
        apart: dict[str, dict[str, str]] = {}
        new: dict[str, bytes] = {}
        for name in filter(is_apart, names):
            fields: list[Any] = await _APART.read(key(name), _APART.fetch(self._redis, "HKEYS", key(name)), [])
            wanted = _APART.parse_list(fields, bytes.decode)
            new |= await self._fetch(name, [field for field in wanted if (name, field) not in self._digests])
            found = {field: self._digests[name, field] for field in wanted if (name, field) in self._digests}
            if found:
                apart[name] = found
        known = {digest for fields in apart.values() for digest in fields.values()}
        self._digests = {place: digest for place, digest in self._digests.items() if digest in known}
        lost = await asyncio.to_thread(missing, known)
        for (name, field), digest in self._digests.items():
            if digest in lost and digest not in new:
                new |= await self._fetch(name, [field])
        return state, apart, {digest: value for digest, value in new.items() if digest in lost}

    async def _fetch(self, name: str, fields: list[str]) -> dict[str, bytes]:
        """Fetch values of a hash by SHA-256, and remember their digests."""
        found = {}
        for start in range(0, len(fields), _FETCHED):
            part = fields[start : start + _FETCHED]
            values: list[Any] = await _APART.read(
                key(name), _APART.fetch(self._redis, "HMGET", key(name), *part), [None] * len(part)
            )
            for field, value in zip(part, values, strict=True):
                if (content := _APART.parse(f"{name} {field}", value, bytes)) is not None:
                    digest = await asyncio.to_thread(lambda content=content: hashlib.sha256(content).hexdigest())  # type: ignore[misc]
                    self._digests[name, field] = digest
                    found[digest] = content
        return found
