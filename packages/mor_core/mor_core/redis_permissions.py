"""Check that a process's user in Redis has the permissions of ``mor_core.redis_users``, for ``/readyz``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from mor_core.failures import quote_failure
from mor_core.redis_cluster import ClusterClient
from mor_core.redis_users import CLUSTER, USERS

_TRUSTED_S = 60.0
"""Seconds for which permissions that were there are not checked again; somebody may change a user at any time."""
_REMEDY = "create the users in Redis again (docs/operator-guide.md, Users in Redis)"
_UNTRIED = {"multi", "exec", "discard", "watch", "unwatch"}
"""Commands of the transaction by which the others are tried."""
_ARGUMENTS = {
    "asking": "",
    "client|setname": "mor",
    "cluster|slots": "",
    "command": "",
    "del": "KEY",
    "evalsha": "sha 1 KEY",
    "evalsha_ro": "sha 1 KEY",
    "expire": "KEY 1",
    "get": "KEY",
    "getrange": "KEY 0 0",
    "hdel": "KEY f",
    "hexists": "KEY f",
    "hget": "KEY f",
    "hgetall": "KEY",
    "hincrby": "KEY f 1",
    "hkeys": "KEY",
    "hlen": "KEY",
    "hmget": "KEY f",
    "hscan": "KEY 0",
    "hset": "KEY f v",
    "hsetnx": "KEY f v",
    "incrby": "KEY 1",
    "info": "",
    "lpush": "KEY v",
    "lrange": "KEY 0 0",
    "ltrim": "KEY 0 0",
    "pexpire": "KEY 1",
    "ping": "",
    "pttl": "KEY",
    "sadd": "KEY v",
    "scard": "KEY",
    "scan": "0",
    "script|load": "return",
    "select": "0",
    "set": "KEY v",
    "smembers": "KEY",
    "srem": "KEY v",
    "time": "",
    "ttl": "KEY",
    "xack": "KEY g 0-1",
    "xadd": "KEY * f v",
    "xautoclaim": "KEY g c 1 0",
    "xclaim": "KEY g c 1 0-1",
    "xdel": "KEY 0-1",
    "xgroup|create": "KEY g 0",
    "xgroup|setid": "KEY g 0",
    "xlen": "KEY",
    "xpending": "KEY g",
    "xrange": "KEY - +",
    "xreadgroup": "GROUP g c STREAMS KEY >",
    "xtrim": "KEY MAXLEN 0",
}
"""Arguments with which each command is tried."""


class RedisPermissions:
    """Permissions of one process's user, tried without doing anything."""

    def __init__(self, redis: Redis, service: str) -> None:
        """``service``: name in ``USERS``."""
        self._redis = redis
        self._service = service
        self._found_at: float | None = None

    async def missing(self) -> str | None:
        """Return which permission the user lacks; ``None`` if it lacks none.

        Each command is queued in a transaction that is discarded: the server checks a command when it is queued.

        Raises:
            RedisError: the server cannot be reached.
        """
        if self._found_at is not None and time.monotonic() - self._found_at < _TRUSTED_S:
            return None
        redis: Any = self._redis
        pools = await redis.primaries() if isinstance(redis, ClusterClient) else [redis.connection_pool]
        for pool in pools:  # each node of a cluster has users of its own
            if lacking := await self._lacking(pool):
                return f"the user of MOR_REDIS_URL may not use {lacking[0]}; {_REMEDY}"
        self._found_at = time.monotonic()
        return None

    async def _lacking(self, pool: Any) -> list[str]:
        """Return the permissions that the user lacks on one server."""
        attempts = [(["MULTI"], "the command multi"), *self._attempts(), (["DISCARD"], "the command discard")]
        try:
            connection = await pool.get_connection()
        except NoPermissionError as error:  # of a command with which each connection begins
            name = quote_failure(error).partition("'")[2].partition("'")[0]
            return [f"the command {name.replace('|', ' ')}"]
        lacking = []
        try:
            await connection.send_packed_command(connection.pack_commands([command for command, _ in attempts]))
            for _, what in attempts:
                try:
                    await connection.read_response()
                except NoPermissionError:
                    lacking.append(what)
                except ResponseError:  # of a command that nothing is known about but that it may be used
                    continue
        finally:
            await connection.disconnect()  # so that no transaction stays open, whatever happened
            await pool.release(connection)
        return lacking

    def _attempts(self) -> Iterator[tuple[list[str], str]]:
        """Yield commands to try, each with the name of what it tries: every command, then every pattern of keys."""
        user = USERS[self._service]
        in_cluster: list[str] = CLUSTER.split() if isinstance(self._redis, ClusterClient) else []
        for name in sorted({*user.commands.split(), *in_cluster} - _UNTRIED):
            given = _ARGUMENTS[name].replace("KEY", _example(user.keys[0]))
            yield [*name.upper().split("|"), *given.split()], f"the command {name.replace('|', ' ')}"
        for pattern in (*user.keys, *user.write_only):
            yield ["DEL", _example(pattern)], f"the keys {pattern}"
        for pattern in user.read_only:
            yield ["XLEN", _example(pattern)], f"the keys {pattern}"


def _example(pattern: str) -> str:
    return pattern.replace("*", "mor-ready")
