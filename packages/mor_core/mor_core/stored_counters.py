"""Counters in Redis. One that is none is begun anew by the command that counts, so that no other count is lost.

Such a counter has another type, holds no number, or one that no count can be. Somebody else wrote it.
"""

from __future__ import annotations

from typing import cast

from redis.asyncio import Redis

_MOST = 1 << 53
"""Largest count, that of ``mor_core.wire.Count``. Lua's numbers are exact up to it."""

_IS_BROKEN = """
local function is_broken(reply)
  return reply.err:find('WRONGTYPE') or reply.err:find('not an integer') or reply.err:find('overflow')
end
"""

# KEYS: hash. ARGV: field, amount.
_COUNT_FIELD = f"""{_IS_BROKEN}
local count = redis.pcall('HINCRBY', KEYS[1], ARGV[1], ARGV[2])
if type(count) == 'table' then
  if not is_broken(count) then return count end
  if count.err:find('WRONGTYPE') then redis.call('DEL', KEYS[1]) end
elseif count >= tonumber(ARGV[2]) and count <= {_MOST} then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""

# KEYS: counter. ARGV: amount, most seconds, largest count. A counter that was not there does not end yet.
_COUNT_FOR = f"""{_IS_BROKEN}
local amount, seconds = tonumber(ARGV[1]), tonumber(ARGV[2])
local count = redis.pcall('INCRBY', KEYS[1], ARGV[1])
local left = redis.call('TTL', KEYS[1])
if type(count) == 'table' then
  if not is_broken(count) then return count end
elseif count >= amount and count <= tonumber(ARGV[3]) and left >= 0 and left <= seconds then
  return {{count, left, 0}}
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return {{amount, seconds, (left ~= -1 or count ~= amount) and 1 or 0}}
"""

# KEYS: counter. ARGV: the highest number that is taken.
_NEXT_NUMBER = f"""{_IS_BROKEN}
local number = redis.pcall('INCRBY', KEYS[1], 1)
if type(number) == 'table' then
  if not is_broken(number) then return number end
elseif number > tonumber(ARGV[1]) and number <= {_MOST} then
  return {{number, 0}}
end
redis.call('SET', KEYS[1], ARGV[1])
return {{redis.call('INCRBY', KEYS[1], 1), 1}}
"""


async def count_field(redis: Redis, name: str, field: str, amount: int = 1) -> bool:
    """Add to a counter in a hash; return whether it was begun anew.

    Raises:
        RedisError: the server failed.
    """
    return bool(await redis.register_script(_COUNT_FIELD)(keys=[name], args=[field, amount]))


async def count_for(redis: Redis, name: str, amount: int, *, seconds: int, most: int) -> tuple[int, int, bool]:
    """Add to a counter that ends ``seconds`` after its first count and reaches ``most`` at most.

    Return its count, the seconds that are left, and whether it was begun anew.

    Raises:
        RedisError: the server failed.
    """
    script = redis.register_script(_COUNT_FOR)
    count, left_s, is_anew = cast("list[int]", await script(keys=[name], args=[amount, seconds, most]))
    return count, left_s, bool(is_anew)


async def next_number(redis: Redis, name: str, taken: int) -> tuple[int, bool]:
    """Return a number over ``taken`` that this counter gives once, and whether it was begun anew.

    Raises:
        RedisError: the server failed.
    """
    number, is_anew = cast("list[int]", await redis.register_script(_NEXT_NUMBER)(keys=[name], args=[taken]))
    return number, bool(is_anew)
