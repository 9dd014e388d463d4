"""Detection of a queue server that has lost its content."""

from __future__ import annotations

from typing import Any, Literal

from mor_core.fence import ATTEMPT, FENCED, Fence
from mor_core.redis_users import MARK
from mor_core.stored import LEFTOVER_S
from mor_core.streams import key
from redis.asyncio import Redis

# KEYS: mark, newest attempt. ARGV: attempt. The answer has the identity of the process that holds the run's keys.
_SET = f"""{FENCED}
local server = redis.call('INFO', 'server'):match('run_id:(%w+)')
local is_new = redis.call('SET', KEYS[1], server, 'NX')
redis.call('EXPIRE', KEYS[1], {LEFTOVER_S})
return {{is_new and 1 or 0, server}}
"""
# KEYS: mark, newest attempt. ARGV: attempt.
_REMOVE = f"{FENCED}return redis.call('DEL', KEYS[1])"


class FlushDetector:
    """A key that a flush removes, and the identity of the server process, which a restart or a fail-over changes.

    A server that restarts has lost up to its last second even with an append-only file, and a replica lacks what had
    not reached it, so all of these count as a loss.
    """

    def __init__(self, redis: Redis, fence: Fence) -> None:
        self._fence = fence
        self._keys = [key(fence.run, MARK), key(fence.run, ATTEMPT)]
        self._set = redis.register_script(_SET)
        self._remove = redis.register_script(_REMOVE)
        self._server: bytes | None = None

    async def check(self) -> Literal["first", "same", "lost"]:
        """Compare the server with the last check; ``first`` on the first one.

        Raises:
            Superseded: a later attempt at the run has begun.
        """
        self._fence.check()
        reply: Any = await self._set(keys=self._keys, args=[self._fence.attempt])
        self._fence.check_reply(reply)
        created, server = reply
        before, self._server = self._server, server
        if before is None:
            return "first"
        return "lost" if created or server != before else "same"

    async def remove(self) -> None:
        """Remove the key when the run ends.

        Raises:
            Superseded: a later attempt at the run has begun.
        """
        self._fence.check()
        self._fence.check_reply(await self._remove(keys=self._keys, args=[self._fence.attempt]))
