"""A queue server whose clock jumps: entries of a dead consumer go to another after a lease, not after the jump."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from mor_core import bundled_valkey
from mor_core.settings import StreamSettings
from mor_core.stream_consumer import Consumer
from mor_core.streams import Streams, connect
from mor_core.wire import EventRecord
from pydantic import SecretStr
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.chaos.cluster import build_clock_library
from tests.ports import free_port

LEASE_S = 0.3
HOUR_S = 3600


class ShiftedServer:
    """Queue server whose system clock can be set."""

    def __init__(self, folder: Path, library: Path) -> None:
        self._clock = folder / "clock"
        self.jump(0)
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        environment = {**os.environ, "LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._clock)}
        command = [str(bundled_valkey.server_binary()), *bundled_valkey.arguments(port, folder)]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        with SyncRedis(port=port) as client:
            while True:
                try:
                    client.ping()
                    return
                except RedisConnectionError:
                    assert time.monotonic() < deadline, "valkey-server did not come up"
                    time.sleep(0.02)

    def jump(self, ahead_s: int) -> None:
        content = struct.pack("q", ahead_s)
        if self._clock.exists():
            with self._clock.open("r+b") as file:
                file.write(content)
        else:
            self._clock.write_bytes(content)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ShiftedServer]:
    library = build_clock_library(tmp_path)
    if library is None:
        pytest.skip("no C compiler")
    found = ShiftedServer(tmp_path, library)
    yield found
    found.process.terminate()
    found.process.wait(timeout=10)


@pytest.fixture
async def shifted(server: ShiftedServer) -> AsyncIterator[Redis]:
    client = connect(StreamSettings(redis_url=SecretStr(server.url)))
    yield client
    await client.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("jump", [-HOUR_S, HOUR_S, 0])
async def test_entries_of_a_dead_consumer_go_to_another_whatever_the_clock_does(
    server: ShiftedServer, shifted: Redis, run_name: str, jump: int
) -> None:
    streams = Streams(shifted, run_name, 16)
    for number in range(3):
        record = EventRecord(run=run_name, group_id=f"000001-{number:08d}", kind="state", step=0, data={})
        await streams.publish("events", record, timeout_s=1)
    dead: Consumer[EventRecord] = Consumer(streams, "events", "trainer", LEASE_S)
    assert len(await dead.read(8, 0.05)) == 0  # makes the group
    held = await dead.read(8, 0.05)
    assert len(held) == 3
    server.jump(jump)
    living: Consumer[EventRecord] = Consumer(streams, "events", "trainer", LEASE_S)
    found: set[str] = set()
    began = time.monotonic()
    async with living:
        while len(found) < len(held):
            assert time.monotonic() - began < 20 * LEASE_S, "the entries stay with the dead consumer"
            for entry in await living.read(8, 0.05):
                found.add(entry.id)
                await living.settle(entry)
    assert found == {entry.id for entry in held}


@pytest.mark.anyio
async def test_a_living_consumer_keeps_its_entries_through_a_jump_back(
    server: ShiftedServer, shifted: Redis, run_name: str
) -> None:
    streams = Streams(shifted, run_name, 16)
    record = EventRecord(run=run_name, group_id="000001-00000001", kind="state", step=0, data={})
    await streams.publish("events", record, timeout_s=1)
    living: Consumer[EventRecord] = Consumer(streams, "events", "trainer", LEASE_S)
    await living.read(8, 0.05)
    held = await living.read(8, 0.05)
    other: Consumer[EventRecord] = Consumer(streams, "events", "trainer", LEASE_S)
    async with living.leased(held):
        server.jump(-HOUR_S)
        began = time.monotonic()
        while time.monotonic() - began < 5 * LEASE_S:
            assert await other.read(8, 0.05) == []


@pytest.mark.anyio
async def test_a_read_that_waits_ends_in_time_although_the_clock_jumps_back(
    server: ShiftedServer, shifted: Redis, run_name: str
) -> None:
    """The server would end it by its clock: in an hour."""
    consumer: Consumer[EventRecord] = Consumer(Streams(shifted, run_name, 16), "events", "trainer", LEASE_S)
    assert await consumer.read(8, 0.05) == []  # makes the group
    began = time.monotonic()
    reading = asyncio.create_task(consumer.read(8, 0.5))
    await asyncio.sleep(0.2)
    server.jump(-HOUR_S)
    assert await reading == []
    assert time.monotonic() - began < 10
