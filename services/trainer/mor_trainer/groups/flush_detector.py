"""Detection of a queue server that has lost its content."""

from __future__ import annotations

import secrets
from typing import Any, Literal

from mor_core.fence import ATTEMPT, FENCED, Fence
from mor_core.redis_users import MARK
from mor_core.stored import LEFTOVER_S
from mor_core.streams import key
from redis.asyncio import Redis

# KEYS: mark, newest attempt. ARGV: content of a new mark, attempt. Returns the content of the mark, and the identity of
# the process that holds the run's keys.
_MARK = f"""{FENCED}
local server = redis.call('INFO', 'server'):match('run_id:(%w+)')
local found = redis.pcall('GET', KEYS[1])
if type(found) == 'table' and found.err:find('WRONGTYPE') then redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[1], 'NX')
redis.call('EXPIRE', KEYS[1], {LEFTOVER_S})
return {{redis.call('GET', KEYS[1]), server}}
"""
# KEYS: mark, newest attempt. ARGV: attempt.
_REMOVE = f"{FENCED}return redis.call('DEL', KEYS[1])"


class FlushDetector:
    """A key that a flush removes, and the identity of the server process, which a restart or a fail-over changes.

    A server that restarts has lost up to its last second even with an append-only file, and a replica lacks what had
    not reached it, so all of these count as a loss. Each mark has a content of its own, so that a check whose answer
    was lost, and which is sent again, finds the loss too.
    """

    def __init__(self, redis: Redis, fence: Fence) -> None:
        self._fence = fence
        self._keys = [key(fence.run, MARK), key(fence.run, ATTEMPT)]
        self._mark = redis.register_script(_MARK)
        self._remove = redis.register_script(_REMOVE)
        self._seen: tuple[bytes, bytes] | None = None
        """Mark and server process at the last check."""

    async def check(self) -> Literal["first", "same", "lost"]:
        """Compare the server with the last check; ``first`` on the first one.

        Raises:
            Superseded: a later attempt at the run has begun.
        """
        self._fence.check()
        reply: Any = await self._mark(keys=self._keys, args=[secrets.token_hex(16), self._fence.attempt])
        self._fence.check_reply(reply)
        before, self._seen = self._seen, (reply[0], reply[1])
        if before is None:
            return "first"
        return "same" if self._seen == before else "lost"

    async def remove(self) -> None:
        """Remove the key when the run ends.

        Raises:
            Superseded: a later attempt at the run has begun.
        """
        self._fence.check()
        self._fence.check_reply(await self._remove(keys=self._keys, args=[self._fence.attempt]))
