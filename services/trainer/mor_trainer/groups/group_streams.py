"""The streams of a run's groups, read without consuming them: depths and content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mor_core.bounded_reads import read_bounded
from mor_core.stored import StoredEntries
from mor_core.streams import LARGEST_RECORD, key
from redis.asyncio import Redis

_NAMES = ("prompts", "rollouts", "rewards", "dead")
_PAGE = 16
"""Entries that are read at a time."""
_STREAMS = StoredEntries("streams")


class GroupStreams:
    """The four streams of a run that hold groups."""

    def __init__(self, redis: Redis, run: str) -> None:
        self._redis = redis
        self._keys = {name: key(run, name) for name in _NAMES}

    async def depths(self) -> dict[str, int]:
        """Count the entries of each stream."""
        return {name: await self._mended(stream, self._redis.xlen) for name, stream in self._keys.items()}

    async def holding(self, group_ids: Sequence[str]) -> set[str]:
        """Return those of ``group_ids`` that a stream holds."""
        found: set[str] = set()
        for stream in self._keys.values():
            after = "-"
            while entries := await self._mended(stream, partial(self._page, after)):
                for _, fields in entries:
                    content = b"".join(value for value in fields if isinstance(value, bytes))
                    found |= {group_id for group_id in group_ids if group_id.encode() in content}
                after = f"({entries[-1][0].decode()}"
        return found

    async def _page(self, after: str, stream: str) -> Any:
        return await read_bounded(self._redis, LARGEST_RECORD, "XRANGE", stream, after, "+", "COUNT", _PAGE)

    async def clear(self) -> None:
        """Empty the streams; their consumer groups stay."""
        for stream in self._keys.values():
            await self._mended(stream, partial(self._redis.xtrim, maxlen=0, approximate=False))

    async def _mended(self, stream: str, command: Callable[[str], Any]) -> Any:
        """Return the reply to a command, after the key was deleted where it is no stream."""
        return await _STREAMS.write(self._redis, [stream], lambda: command(stream))
