"""Keys of locks and claims that do not end in time: somebody else wrote them, or the server's clock was set back."""

from __future__ import annotations

import time

from redis.asyncio import Redis

# KEYS: a key. ARGV: the most milliseconds that it may last. Another process may have made it anew: then it stays.
_DELETE_ENDLESS = """
local left_ms = redis.call('PTTL', KEYS[1])
if left_ms == -1 or left_ms > tonumber(ARGV[1]) then return redis.call('DEL', KEYS[1]) end
return 0
"""
_SLACK = 2
"""Times of its own life that a key may last: clocks are set back by seconds often, which makes no key endless."""


async def delete_endless(redis: Redis, name: str, life_s: float) -> bool:
    """Delete a key, of any type, that lasts far longer than the ``life_s`` seconds for which it is made; return
    whether it was one.

    Raises:
        RedisError: the server failed.
    """
    return bool(await redis.register_script(_DELETE_ENDLESS)(keys=[name], args=[_most_ms(life_s)]))


def _most_ms(life_s: float) -> int:
    return round(1000 * _SLACK * life_s)


class LeaseKey:
    """Key that its holder renews several times in ``life_s``, and that others look at as often.

    A holder's key lasts too long only from a jump of the server's clock until the next renewal.
    """

    def __init__(self, redis: Redis, name: str, life_s: float) -> None:
        self._redis, self._name, self._life_s = redis, name, life_s
        self._endless_since = self._looked_at = 0.0
        """Monotonic times of the first look at which the key did not end, and of the last one."""

    async def delete_unheld(self) -> bool:
        """Delete the key if it did not end in time at any look for ``life_s``; return whether it was deleted.

        Raises:
            RedisError: the server failed.
        """
        left_ms = int(await self._redis.pttl(self._name))
        if left_ms != -1 and left_ms <= _most_ms(self._life_s):
            self._looked_at = 0.0
            return False
        now = time.monotonic()
        if now - self._looked_at > self._life_s:
            self._endless_since = now
        self._looked_at = now
        return now - self._endless_since >= self._life_s and await delete_endless(self._redis, self._name, self._life_s)
