"""A connection that dies just before a write is a lost connection for redis-py and its retries, on uvloop too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
import uvloop
from mor_core.settings import StreamSettings
from mor_core.streams import connect
from pydantic import SecretStr
from redis.exceptions import ConnectionError as RedisConnectionError


def test_a_write_to_a_closed_transport_is_a_lost_connection(redis_url: str) -> None:
    async def work() -> None:
        redis = connect(StreamSettings(redis_url=SecretStr(redis_url)))
        connection = await redis.connection_pool.get_connection()
        connection._writer.transport.abort()
        await asyncio.sleep(0.05)
        with pytest.raises(RedisConnectionError):
            await connection.send_command("PING", check_health=False)
        await redis.connection_pool.release(connection)
        await redis.aclose()

    uvloop.run(work())


def test_a_command_whose_connection_dies_before_the_write_is_sent_again(redis_url: str) -> None:
    async def work() -> None:
        redis = connect(StreamSettings(redis_url=SecretStr(redis_url)))
        await redis.set("closed", "1")
        kind = redis.connection_pool.connection_class
        died = []

        class Dying(kind):  # type: ignore[misc, valid-type]
            async def send_packed_command(self, command: Iterable[bytes], check_health: bool = True) -> None:
                if not died:
                    died.append(True)
                    self._writer.transport.abort()
                    await asyncio.sleep(0.05)
                await super().send_packed_command(command, check_health)

        await redis.connection_pool.disconnect()
        redis.connection_pool.reset()
        redis.connection_pool.connection_class = Dying
        assert await redis.get("closed") == b"1"
        assert died
        await redis.delete("closed")
        await redis.aclose()

    uvloop.run(work())
