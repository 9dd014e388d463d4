"""Keys of locks and claims that do not end in time: somebody else wrote them, or the server's clock was set back."""

from __future__ import annotations

from redis.asyncio import Redis

# KEYS: a key. ARGV: the most milliseconds that it may last. Another process may have made it anew: then it stays.
_DELETE_ENDLESS = """
local left_ms = redis.call('PTTL', KEYS[1])
if left_ms == -1 or left_ms > tonumber(ARGV[1]) then return redis.call('DEL', KEYS[1]) end
return 0
"""


async def delete_endless(redis: Redis, name: str, most_s: float) -> bool:
    """Delete a key that does not end within ``most_s`` seconds, of any type; return whether it was one.

    Raises:
        RedisError: the server failed.
    """
    return bool(await redis.register_script(_DELETE_ENDLESS)(keys=[name], args=[round(1000 * most_s)]))
