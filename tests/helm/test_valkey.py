"""Start script and users of the bundled server permit what each service does and nothing else."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mor_core import bundled_valkey
from mor_core.blobs import Blobs
from mor_core.fence import Fence
from mor_core.run_announcements import AnnouncedRuns, announce, announced_runs, sweep
from mor_core.run_keys import delete_run_keys, runs_with_keys
from mor_core.settings import StreamSettings
from mor_core.stream_consumer import Consumer
from mor_core.streams import GROUP_STREAMS, Streams, connect
from mor_core.wire import DeadLetter, EventRecord, Record, RolloutRecord, StreamName
from mor_router.clients.registry import ClientRegistry
from mor_router.store import CLIENTS, key
from mor_trainer.groups.flush_detector import FlushDetector
from mor_trainer.groups.group_streams import GroupStreams
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from tests.core.records import prompt, rollout
from tests.helm import charts, secret_jobs
from tests.ports import free_port

pytestmark = pytest.mark.anyio


@pytest.fixture
def urls(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Address of the chart's server for each user."""
    documents = charts.render(charts.CHARTS / "mor", "--set=model.name=a/b")
    config = charts.of(documents, "ConfigMap")["m-mor-valkey"]["data"]
    secret = secret_jobs.generated(documents)["m-mor-valkey"]
    port = free_port()
    moved = {"/etc/valkey": tmp_path, "/run/valkey": tmp_path, "/run/secrets/valkey": tmp_path, "/data": tmp_path}
    passwords = {name: f"{value}\n" for name, value in secret.items() if name.endswith("-password")}
    passwords["router-password-previous"] = "former\n"
    for name, text in {**config, **passwords}.items():
        for place, folder in moved.items():
            text = text.replace(place, str(folder))  # noqa: PLW2901
        (tmp_path / name).write_text(text.replace("port 6379", f"port {port}\nbind 127.0.0.1"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "valkey-server").symlink_to(bundled_valkey.server_binary())
    environment = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(["sh", str(tmp_path / "start.sh")], env=environment, stdout=subprocess.DEVNULL)
    yield {
        name.removesuffix("-url"): address.replace("m-mor-valkey:6379", f"127.0.0.1:{port}")
        for name, address in secret.items()
        if name.endswith("-url")
    }
    process.terminate()
    process.wait(timeout=10)


def client(url: str) -> Redis:
    return connect(StreamSettings(redis_url=SecretStr(url)))


async def started(redis: Redis) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await redis.ping()
                return
            except AuthenticationError:
                raise
            except RedisError:
                await asyncio.sleep(0.05)


async def passed(consumer: Consumer[Any], target: StreamName, record: Record) -> None:
    """Read an entry under a lease and forward a record."""
    await consumer.read(1, 0.1)  # makes the group
    (entry,) = await consumer.read(1, 1)
    async with consumer.leased([entry]):
        await consumer.forward(entry, target, record, timeout_s=5)


async def test_each_service_may_do_what_it_does_and_nothing_besides(urls: dict[str, str]) -> None:
    redis = {name: client(url) for name, url in urls.items()}
    await started(redis["worker"])
    fence = Fence("r", 1)
    streams = {name: Streams(connection, "r", 8) for name, connection in redis.items()}
    streams["worker"] = Streams(redis["worker"], "r", 8, fence)
    assert await FlushDetector(redis["worker"], fence).check() == "first"
    await GroupStreams(redis["worker"], fence).clear()
    await announce(redis["worker"], "r", "model", fence=fence)
    await sweep(redis["worker"])
    for name in ("rollout", "router"):
        assert [found.run for found in await AnnouncedRuns(redis[name]).read()] == ["r"]

    blobs = Blobs(redis["worker"], "r", None, fence)
    digest = await blobs.put(b"picture", "g")
    issued = prompt("r", "g").model_copy(update={"run_attempt": 1})
    await streams["worker"].publish("prompts", issued, timeout_s=5)
    await passed(Consumer(streams["rollout"], "prompts", "rollout", 5), "rollouts", rollout(issued))
    assert await Blobs(redis["rollout"], "r").get(digest) == b"picture"
    await Blobs(redis["rollout"], "r").put(b"tokens", "g", issuer=1)
    assert await Blobs(redis["router"], "r").get(digest) == b"picture"
    consumer: Consumer[RolloutRecord] = Consumer(streams["router"], "rollouts", "router", 5)
    await consumer.read(1, 0.1)
    (entry,) = await consumer.read(1, 1)
    await consumer.give_up(entry, "a test")
    dead: Consumer[DeadLetter] = Consumer(streams["worker"], "dead", "trainer", 5)
    await dead.read(1, 0.1)
    await dead.settle((await dead.read(1, 1))[0])
    await blobs.release("g")

    event = EventRecord(run="r", group_id="000001-00000001", kind="state", step=0, data={})
    await streams["worker"].publish("events", event, timeout_s=5)
    events: Consumer[EventRecord] = Consumer(streams["control"], "events", "trainer", 5)
    await events.read(1, 0.1)
    await events.settle((await events.read(1, 1))[0])
    for stream in GROUP_STREAMS:
        await streams["control"].backlog(stream)
    assert await runs_with_keys(redis["control"]) == {"r"}
    assert await announced_runs(redis["control"]) == {"r": True}
    with pytest.raises(NoPermissionError):
        await redis["control"].getrange(f"mor:{{r}}:blob:{digest}", 0, 1)
    await delete_run_keys(redis["control"], "r")
    assert await runs_with_keys(redis["control"]) == set()

    assert await ClientRegistry(redis["router"]).all() == []
    async with redis["router"].lock(key("leader", "test"), timeout=5):
        pass
    for connection in redis.values():
        assert (await connection.info())["maxmemory_policy"] == "noeviction"
        for refused in (connection.config_get("*"), connection.flushall(), connection.keys(), connection.acl_list()):
            with pytest.raises(NoPermissionError):
                await refused
    for name in ("control", "worker", "rollout"):
        with pytest.raises(NoPermissionError):
            await redis[name].hgetall(CLIENTS)
    for connection in redis.values():
        await connection.aclose()

    rotated = client(re.sub("(?<=router:)[^@]+", "former", urls["router"]))
    assert await rotated.ping(), "until it is retired"
    await rotated.aclose()
    for stranger in ("default", "mor"):
        unknown = client(urls["router"].replace("router:", f"{stranger}:", 1))
        with pytest.raises(AuthenticationError):
            await unknown.ping()
        await unknown.aclose()
