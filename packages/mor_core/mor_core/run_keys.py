"""Keys of runs on the queue server, found by their names and deleted: at a run's end, and where a run vanished.

Only keys that runs have are touched, and none of the router's store.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection
from typing import TYPE_CHECKING

from mor_core.blobs import BLOB, OWNED, OWNERS
from mor_core.fence import ATTEMPT
from mor_core.outage_waits import WAITS
from mor_core.redis_users import MARK, ROUTER_PREFIX
from mor_core.run_announcements import withdraw
from mor_core.streams import RECORD_TYPES, key

if TYPE_CHECKING:
    from redis.asyncio import Redis

_PAGE = 1000
"""Keys that the server looks at in one command, well under a millisecond."""
_SINGLE = (*RECORD_TYPES, MARK, ATTEMPT, WAITS)
_KEY = re.compile(
    rf"mor:\{{([a-z0-9-]{{1,64}})\}}:(?:(?:{'|'.join(_SINGLE)})|(?:{BLOB}|{OWNERS}|{OWNED}):.+)".encode(), re.DOTALL
)


async def runs_with_keys(redis: Redis) -> set[str]:
    """Return the runs of which the queue server holds a key.

    Raises:
        RedisError: the server failed.
    """
    return {run async for run, _ in _scan(redis, key("*", "*"))}


async def delete_run_keys(redis: Redis, run: str, *, keep: Collection[str] = ()) -> int:
    """Delete the keys of a run and its announcement, and return the number of the keys.

    ``keep``: names of keys that stay, such as ``events``.

    Raises:
        RedisError: the server failed; further keys may be there.
    """
    kept = {key(run, name).encode() for name in keep}
    await withdraw(redis, run)
    deleted = 0
    page: list[bytes] = []
    async for _, name in _scan(redis, key(run, "*")):
        if name not in kept:
            page.append(name)
        if len(page) == _PAGE:
            deleted += await redis.delete(*page)
            page = []
    return deleted + (await redis.delete(*page) if page else 0)


async def _scan(redis: Redis, pattern: str) -> AsyncIterator[tuple[str, bytes]]:
    """Yield the keys of runs that match ``pattern``, each with its run. A key may come twice."""
    async for name in redis.scan_iter(match=pattern, count=_PAGE):
        found = _KEY.fullmatch(name)
        if found is not None and not name.startswith(ROUTER_PREFIX.encode()):
            yield found[1].decode(), name
