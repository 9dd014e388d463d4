"""What stands in the streams that a run's groups travel on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mor_core.streams import key
from redis.asyncio import Redis

_NAMES = ("prompts", "rollouts", "rewards", "dead")


class GroupStreams:
    def __init__(self, redis: Redis, run: str) -> None:
        self._redis = redis
        self._keys = {name: key(run, name) for name in _NAMES}

    async def depths(self) -> dict[str, int]:
        """Entries in each of them."""
        return {name: int(await self._redis.xlen(stream)) for name, stream in self._keys.items()}

    async def holding(self, group_ids: Sequence[str]) -> set[str]:
        """Those of ``group_ids`` that stand in one of them."""
        held: set[str] = set()
        for stream in self._keys.values():
            entries: Any = await self._redis.xrange(stream)
            for _, fields in entries:
                content = fields.get(b"record", b"")
                held |= {group_id for group_id in group_ids if group_id.encode() in content}
        return held

    async def clear(self) -> None:
        """Empty them; consumer groups stay."""
        for stream in self._keys.values():
            await self._redis.xtrim(stream, maxlen=0, approximate=False)
