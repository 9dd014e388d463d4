"""Start script and ACL of the bundled server permit what MoR does and nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mor_core import bundled_valkey
from mor_core.blobs import Blobs
from mor_core.settings import StreamSettings
from mor_core.streams import Consumer, Streams, announce, announced_runs, connect
from mor_core.wire import EventRecord
from mor_router.clients.registry import ClientRegistry
from mor_router.store import key
from pydantic import SecretStr
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from tests.conftest import free_port
from tests.helm import charts

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    documents = charts.render(charts.CHARTS / "mor", "--set=model.name=a/b")
    config = charts.of(documents, "ConfigMap")["m-mor-valkey"]["data"]
    secret = charts.of(documents, "Secret")["m-mor-valkey"]["stringData"]
    port = free_port()
    moved = {"/etc/valkey": tmp_path, "/run/valkey": tmp_path, "/run/secrets/valkey": tmp_path, "/data": tmp_path}
    for name, text in {**config, "password": f"{secret['password']}\n"}.items():
        for place, folder in moved.items():
            text = text.replace(place, str(folder))  # noqa: PLW2901
        (tmp_path / name).write_text(text.replace("port 6379", f"port {port}\nbind 127.0.0.1"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "valkey-server").symlink_to(bundled_valkey.server_binary())
    environment = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(["sh", str(tmp_path / "start.sh")], env=environment, stdout=subprocess.DEVNULL)
    yield secret["url"].replace("m-mor-valkey:6379", f"127.0.0.1:{port}")
    process.terminate()
    process.wait(timeout=10)


async def test_mor_may_do_all_that_it_does_and_nothing_besides(url: str) -> None:
    redis = connect(StreamSettings(redis_url=SecretStr(url)))
    async with asyncio.timeout(20):
        while True:
            try:
                await redis.ping()
                break
            except AuthenticationError:
                raise
            except RedisError:
                await asyncio.sleep(0.05)

    await announce(redis, "r", "model")
    assert [found.run for found in (await announced_runs(redis)).active] == ["r"]
    streams = Streams(redis, "r", 8)
    record = EventRecord.model_validate(
        {"run": "r", "group_id": "g", "trace": f"00-{'1' * 32}-{'2' * 16}-01"}
        | {"kind": "state", "step": 0, "data": {}}
    )
    await streams.publish("events", record, timeout_s=5)
    consumer: Consumer[EventRecord] = Consumer(streams, "events", "trainer", 5)
    await consumer.read(1, 0.1)  # makes the group
    (entry,) = await consumer.read(1, 1)
    async with consumer.leased([entry]):
        await consumer.settle(entry)
    blobs = Blobs(redis, "r")
    await blobs.get(await blobs.put(b"picture", "g"))
    await blobs.release("g")
    assert await ClientRegistry(redis).all() == []
    async with redis.lock(key("leader", "test"), timeout=5):
        pass
    assert (await redis.info("server"))["run_id"]

    for refused in (redis.config_get("*"), redis.flushall(), redis.set("other", "1"), redis.acl_list()):
        with pytest.raises(NoPermissionError):
            await refused
    assert (await redis.pipeline(transaction=True).get("mor:x").execute()) == [None]
    await redis.aclose()

    stranger = connect(StreamSettings(redis_url=SecretStr(url.replace("mor:", "default:", 1))))
    with pytest.raises(AuthenticationError):
        await stranger.ping()
    await stranger.aclose()
