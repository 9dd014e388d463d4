"""The streams of a run's groups, read without consuming them: depths and content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mor_core.bounded_reads import read_bounded
from mor_core.fence import ATTEMPT, FENCED, Fence
from mor_core.stored import StoredEntries
from mor_core.streams import LARGEST_RECORD, key
from redis.asyncio import Redis

_NAMES = ("prompts", "rollouts", "rewards", "dead")
_PAGE = 16
"""Entries that are read at a time."""
_STREAMS = StoredEntries("streams")

# KEYS: streams, newest attempt. ARGV: attempt. A key that is no stream goes.
_CLEAR = f"""{FENCED}
for place = 1, #KEYS - 1 do
  local length = redis.pcall('XLEN', KEYS[place])
  if type(length) == 'table' and length.err:find('WRONGTYPE') then redis.call('DEL', KEYS[place]) end
  redis.call('XTRIM', KEYS[place], 'MAXLEN', 0)
end
return 1
"""


class GroupStreams:
    """The four streams of a run that hold groups."""

    def __init__(self, redis: Redis, fence: Fence) -> None:
        self._redis = redis
        self._fence = fence
        self._keys = {name: key(fence.run, name) for name in _NAMES}
        self._clear = redis.register_script(_CLEAR)

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
        """Empty the streams; their consumer groups stay.

        Raises:
            Superseded: a later attempt at the run has begun.
        """
        self._fence.check()
        keys = [*self._keys.values(), key(self._fence.run, ATTEMPT)]
        self._fence.check_reply(await self._clear(keys=keys, args=[self._fence.attempt]))

    async def _mended(self, stream: str, command: Callable[[str], Any]) -> Any:
        """Return the reply to a command, after the key was deleted where it is no stream."""
        return await _STREAMS.write(self._redis, {stream: "stream"}, lambda: command(stream))
