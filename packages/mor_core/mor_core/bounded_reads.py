"""Reads from Redis that withhold what is too long, so that no value fills the memory of the process that reads it.

The server measures: a value over the bound never crosses the network, and an ``Oversized`` with its size stands in its
place. Hashes are read in pages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

_PAGE_FIELDS = 100
"""Fields of a hash in one page: 100 values of the usual bound fit in the memory of a small pod."""
_MOST_ARGUMENTS = 1000
"""Arguments of one command: Lua passes on a few thousand at most."""

# KEYS: key. ARGV: bound in bytes, command, its arguments. All strings of a reply together take a gigabyte at most.
# An entry of a stream is its id, and fields and values in turn. Its first field counts: a writer of MoR adds no other.
_BOUNDED = """
local largest, left = tonumber(ARGV[1]), 1073741824
local function is_entry(value)
  return #value == 2 and type(value[1]) == 'string' and type(value[2]) == 'table' and value[1]:match('^%d+%-%d+$')
end
local function withhold(value)
  if type(value) == 'table' then
    if is_entry(value) then value[2] = {value[2][1], value[2][2]} end
    for place, part in ipairs(value) do value[place] = withhold(part) end
  elseif type(value) == 'string' then
    if #value > math.min(largest, left) then return #value end
    left = left - #value
  end
  return value
end
return withhold(redis.call(unpack(ARGV, 2)))
"""
_SHA1 = hashlib.sha1(_BOUNDED.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Oversized:
    """Place of a value that was not read."""

    bytes: int


async def read_bounded(redis: Redis, largest: int, command: str, key: str, *arguments: str | int) -> Any:
    """Return the reply of a command that reads ``key``, with each string of over ``largest`` bytes withheld.

    The command must reply with strings, not with numbers.

    Raises:
        RedisError: the server failed, or the key has another type.
    """
    if command == "HMGET" and len(arguments) > _MOST_ARGUMENTS:
        parts = (arguments[start : start + _MOST_ARGUMENTS] for start in range(0, len(arguments), _MOST_ARGUMENTS))
        return [value for part in parts for value in await read_bounded(redis, largest, command, key, *part)]
    return await call_bounded(redis.evalsha_ro, redis, largest, key, command, key, *arguments)


async def call_bounded(evaluate: Callable[..., Any], redis: Redis, largest: int, key: str, *command: str | int) -> Any:
    """Return the bounded reply of a command on ``key``. ``evaluate``: ``redis.evalsha`` for one that writes.

    Raises:
        RedisError: the server failed, or the key has another type.
    """
    try:
        reply = await evaluate(_SHA1, 1, key, largest, *command)
    except NoScriptError:
        await redis.script_load(_BOUNDED)
        reply = await evaluate(_SHA1, 1, key, largest, *command)
    return _marked(reply)


async def read_hash_page(redis: Redis, largest: int, key: str, cursor: int) -> tuple[int, dict[Any, Any]]:
    """Return the cursor of the next page, 0 after the last, and the fields of this one. A field may come twice.

    Fields whose names are over ``largest`` are left out.

    Raises:
        RedisError: the server failed, or the key has another type.
    """
    following, flat = await read_bounded(redis, largest, "HSCAN", key, cursor, "COUNT", _PAGE_FIELDS)
    pairs: Iterator[Any] = iter(flat)
    return int(following), dict(zip(pairs, pairs, strict=True))


def _marked(reply: Any) -> Any:
    if isinstance(reply, list):
        return [_marked(part) for part in reply]
    return Oversized(reply) if isinstance(reply, int) else reply
