"""A server behind Sentinels and a cluster serve MoR as one server does, through a fail-over and a move of slots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from mor_core.blobs import Blobs
from mor_core.hidden_secrets import hide_secrets, remember_address
from mor_core.outage_waits import is_server_outage
from mor_core.redis_address import parse_address
from mor_core.redis_client import open_client
from mor_core.redis_permissions import RedisPermissions
from mor_core.redis_users import CLUSTER, USERS
from mor_core.run_announcements import AnnouncedRuns, announce
from mor_core.run_keys import delete_run_keys, runs_with_keys
from mor_core.server_clock import ServerClock
from mor_core.settings import StreamSettings
from mor_core.stream_consumer import Consumer
from mor_core.streams import Streams, key
from mor_core.wire import PromptRecord
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, WatchError

from tests.core.records import prompt, rollout
from tests.redis_servers import RedisCluster, SentinelPair, needs_redis, set_users

RUNS = ("run-a", "run-b", "run-c", "run-d")
"""Their keys lie on all three nodes."""
BLOB = bytes(range(256))

Servers = SentinelPair | RedisCluster


@pytest.fixture(scope="module", params=[SentinelPair, RedisCluster])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    found = request.param(tmp_path_factory.mktemp("servers"))
    yield found
    found.end()


@pytest.fixture
async def client(servers: Servers) -> AsyncIterator[Redis]:
    redis = open_client(servers.url)
    yield redis
    await redis.aclose()


async def pass_on(redis: Redis, run: str) -> None:
    """Send a record of a run through two streams, with a picture."""
    side, blobs = Streams(redis, run, bound=4), Blobs(redis, run)
    reader: Consumer[PromptRecord] = Consumer(side, "prompts", "rollout", 30.0)
    await reader.read(1, 0.01)
    await side.publish("prompts", prompt(run), timeout_s=5)
    digest = await blobs.put(BLOB, "g1")
    [entry] = await reader.read(1, 5)
    async with reader.leased([entry]):
        assert await blobs.get(digest) == BLOB
        await reader.forward(entry, "rollouts", rollout(entry.record), timeout_s=5)
    assert (await side.backlog("prompts")).entries == 0
    assert (await side.backlog("rollouts")).entries == 1
    await blobs.release("g1")


async def change(redis: Redis) -> int:
    """Change a key in a transaction that watches another one, as the router's store does."""
    for _ in range(8):
        async with redis.pipeline(transaction=True) as pipe:
            await pipe.watch("mor:{router}:state")
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.hincrby("mor:{router}:state", "epoch", 1)
            pipe.incr("mor:{router}:versions")
            try:
                _, version = await pipe.execute()
            except WatchError:
                continue
            return int(version)
    pytest.fail("eight changes came between")


@needs_redis
@pytest.mark.anyio
async def test_everything_that_is_stored_finds_its_node(client: Redis) -> None:
    for run in RUNS:
        await pass_on(client, run)
        await announce(client, run, "model")
    assert {line.run for line in await AnnouncedRuns(client).read()} == {*RUNS}
    assert await runs_with_keys(client) == {*RUNS}
    for run in RUNS:
        assert await delete_run_keys(client, run) >= 1
    assert await runs_with_keys(client) == set()
    assert await change(client) + 1 == await change(client)
    async with client.pipeline(transaction=False) as pipe:
        pipe.lpush("mor:{router}:influence:c", "line")
        pipe.ltrim("mor:{router}:influence:c", 0, 9)
        assert await pipe.execute() == [1, True]
    lock = client.lock("mor:{router}:leader:fits", timeout=5, blocking=False)
    assert await lock.acquire()
    await lock.reacquire()
    await lock.release()


@needs_redis
@pytest.mark.anyio
async def test_processes_agree_on_the_server_and_its_clock(servers: Servers, client: Redis) -> None:
    other = open_client(servers.url)
    assert (await client.info())["run_id"] == (await other.info())["run_id"]
    assert abs(await ServerClock().read(client) - await ServerClock().read(other)) < 1
    await other.aclose()


@needs_redis
@pytest.mark.anyio
@pytest.mark.parametrize("service", USERS)
async def test_each_service_works_with_its_own_user(servers: Servers, service: str) -> None:
    data = servers.servers if isinstance(servers, SentinelPair) else servers.nodes
    set_users(data, service, USERS[service].rules)
    where = servers.url.partition("@")[2]
    redis = open_client(f"{servers.url.partition('://')[0]}://{service}:secret@{where}")
    assert await RedisPermissions(redis, service).missing() is None
    if isinstance(servers, RedisCluster):
        lacking = next(iter(CLUSTER.split()))
        set_users([servers.nodes[2]], service, f"{USERS[service].rules} -{lacking}")
        assert f"the command {lacking}" in str(await RedisPermissions(redis, service).missing())
    await redis.aclose()


@needs_redis
@pytest.mark.anyio
async def test_a_slot_that_moved_is_followed(tmp_path: Path) -> None:
    """By scripts, blocking reads and transactions of a client that knew where it was."""
    servers = RedisCluster(tmp_path, replicas=False)
    redis = open_client(servers.url)
    try:
        await change(redis)
        side = Streams(redis, "run-a", bound=4)
        reader: Consumer[PromptRecord] = Consumer(side, "prompts", "rollout", 30.0)
        await reader.read(1, 0.01)
        await asyncio.to_thread(move_slots, servers, ["mor:{router}:state", key("run-a", "prompts")])
        await change(redis)
        await pass_on(redis, "run-a")
        watching = redis.pipeline(transaction=True)
        await watching.watch("mor:{router}:state")
        await asyncio.to_thread(move_slots, servers, ["mor:{router}:state"])
        watching.multi()  # type: ignore[no-untyped-call]
        watching.incr("mor:{router}:versions")
        with pytest.raises((WatchError, RedisError)):
            await watching.execute()
        await watching.reset()  # type: ignore[no-untyped-call]
        await change(redis)
    finally:
        await redis.aclose()
        servers.end()


def move_slots(servers: RedisCluster, names: list[str]) -> None:
    """Move the slots of keys to another node each, without their content."""
    for name in names:
        source = servers.node_of(name)
        target = next(node for node in servers.nodes if node is not source)
        with source.client() as old, target.client() as new:
            slot = old.execute_command("CLUSTER KEYSLOT", name)
            for stored in old.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
                old.delete(stored)
            former, owner = (each.execute_command("CLUSTER MYID") for each in (old, new))
            new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", former)
            old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", owner)
            new.execute_command("CLUSTER SETSLOT", slot, "NODE", owner)
            for node in servers.nodes:
                with node.client() as each:
                    each.execute_command("CLUSTER SETSLOT", slot, "NODE", owner)


@needs_redis
@pytest.mark.anyio
@pytest.mark.parametrize("kind", [SentinelPair, RedisCluster])
async def test_a_client_works_on_after_a_fail_over(kind: Any, tmp_path: Path) -> None:
    """Without a new start. Meanwhile every failure is an outage, for which groups wait and lose no attempt."""
    servers = kind(tmp_path)
    redis = open_client(servers.url)
    try:
        await change(redis)
        failing = asyncio.create_task(asyncio.to_thread(servers.fail_over, "mor:{router}:state"))
        while not failing.done():
            try:
                await change(redis)
            except RedisError as error:
                assert is_server_outage(error), repr(error)
        await failing
        assert await change(redis) + 1 == await change(redis)
        await pass_on(redis, "run-a")
        assert await redis.ping()
    finally:
        await redis.aclose()
        servers.end()


@needs_redis
@pytest.mark.anyio
async def test_servers_that_are_away_are_an_outage(redis_url: str) -> None:
    alone = redis_url.partition("://")[2].partition("/")[0]
    for url in (
        "redis+sentinel://127.0.0.1:1,127.0.0.1:2/name",
        "redis+cluster://127.0.0.1:1",
        f"redis+cluster://{alone}",
    ):
        redis = open_client(url)
        redis.set_retry(Retry(NoBackoff(), retries=0))
        with pytest.raises(RedisError) as refused:
            await redis.get("mor:{a}:x")
        assert is_server_outage(refused.value)
        async with redis.pipeline(transaction=True) as pipe:
            pipe.get("mor:{a}:x")
            with pytest.raises(RedisError) as refused:
                await pipe.execute()
        assert is_server_outage(refused.value)
        await redis.aclose()


@pytest.mark.parametrize(
    ("url", "nodes"),
    [
        ("redis+sentinel://[::1]:26380,s2/name/3", (("::1", 26380), ("s2", 26379))),
        ("rediss+cluster://user:p%40ss@[fd00::1],n2:7000", (("fd00::1", 6379), ("n2", 7000))),
    ],
)
def test_an_address_lists_hosts(url: str, nodes: tuple[tuple[str, int], ...]) -> None:
    assert parse_address(url).nodes == nodes


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("http://host:6379", "/NAME/0"),
        ("redis+sentinel://secretword@host:26379", "/mymaster"),
        ("redis+cluster://:secretword@host:6379/2", "database 0"),
        ("redis+cluster://:secretword@::1:6379", "brackets"),
        ("redis+cluster://:secretword@h:6379?sentinel_password=x", "sentinel_password"),
        ("redis+sentinel://h:99999/name", "host 1"),
        ("redis+sentinel://h/name/zero", "database"),
    ],
)
def test_an_address_that_cannot_work_is_refused_without_its_password(url: str, cure: str) -> None:
    with pytest.raises(ValidationError) as refused:
        StreamSettings(redis_url=SecretStr(url))
    assert cure in str(refused.value)
    assert "secretword" not in str(refused.value)


def test_passwords_of_servers_and_sentinels_are_hidden() -> None:
    remember_address("redis+sentinel://u:first-password@[::1]:1,h:2/name?sentinel_password=second-password")
    assert "password" not in hide_secrets("got first-password and second-password").replace("[hidden]", "")
