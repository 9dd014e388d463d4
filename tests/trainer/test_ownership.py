"""Two run controls on one database: exactly one owns it, whatever is cut off or lost."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mor_core.redis_users import CONTROL_LEASE
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.conftest import Valkey
from tests.trainer.control import Worker, claim, create, eventually
from tests.trainer.databases import database_url, postgresql  # noqa: F401
from tests.trainer.kit import Processes, bearer, running
from tests.trainer.stages import until

LEASE_S = 2.0


@pytest.fixture
def settings(settings: ControlSettings, database_url: str) -> ControlSettings:  # noqa: F811
    return settings.model_copy(update={"database_url": SecretStr(database_url), "control_lease_s": LEASE_S})


@contextlib.asynccontextmanager
async def control(settings: ControlSettings, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Run a run control of its own in this process, with a client of its API."""
    async with running(create_app(settings.model_copy(update=changes))) as http:
        http.headers.update(bearer("admin"))
        yield http


def app_of(http: httpx.AsyncClient) -> FastAPI:
    return http._transport.app  # type: ignore[attr-defined, no-any-return]


class CutLink:
    """Connection to a server that a test can cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.cut = False

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        finally:
            self.end()
            server.close()

    def end(self) -> None:
        self.cut = True
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.close()
            return
        inward, outward = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, outward}
        await asyncio.gather(self._pass(reader, outward), self._pass(inward, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


async def refuses(http: httpx.AsyncClient, spec: RunSpec, reason: str) -> None:
    """Check that a run control refuses reads and writes with what to do, and that its readiness says so."""
    body = spec.model_dump(mode="json")
    beat = {"attempt": 1, "state": "running"}
    replies = [
        await http.post("/v1/runs", json=body),
        await http.get("/v1/runs"),
        await http.get("/v1/runs", headers={"If-None-Match": "*"}),
        await http.get("/v1/runs/any-1", headers={"If-None-Match": "*"}),
        await http.get("/v1/alerts"),
        await http.post("/v1/runs/claim", json={"worker": "w"}, headers=bearer("service")),
        await http.post("/v1/runs/any-1/heartbeat", json=beat, headers=bearer("service")),
    ]
    for reply in replies:
        assert reply.status_code == 503, reply.text
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.headers["Retry-After"]
        assert reply.json()["title"] == "Not the owner of the history"
        assert reason in reply.json()["detail"]
    ready = await http.get("/readyz")
    assert ready.status_code == 503
    assert reason in ready.json()["missing"]["history"]


async def until_owner(http: httpx.AsyncClient, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while (reply := await http.get("/v1/runs")).status_code != 200:
        assert time.monotonic() < deadline, reply.text
        await asyncio.sleep(0.05)


async def owners(*controls: httpx.AsyncClient) -> list[int]:
    """Return which run controls answer. Where one took over between two questions, both are repeated."""
    for _ in range(2):
        found = [number for number, http in enumerate(controls) if (await http.get("/v1/runs")).status_code == 200]
        if len(found) <= 1:
            break
    return found


@pytest.mark.anyio
async def test_a_second_waits_and_takes_over_when_the_first_stops(
    settings: ControlSettings, redis: Redis, spec: RunSpec
) -> None:
    async with contextlib.AsyncExitStack() as ends:
        first_ends = await ends.enter_async_context(contextlib.AsyncExitStack())
        first = await first_ends.enter_async_context(control(settings))
        second = await ends.enter_async_context(control(settings))
        run = await create(first, spec)
        attempt = (await claim(first))["attempt"]
        worker = Worker(redis, run, attempt)
        await worker.report("state", 0, {"name": "started", "from_step": 0})
        await worker.step(1, reward=0.1)
        await eventually(first, f"/v1/runs/{run}", lambda found: found["step"] == 1)
        await refuses(second, spec, "send requests to it")
        assert app_of(second).state.runs._revisions == {}, "it knows nothing that could be old"
        tag = (await first.get(f"/v1/runs/{run}")).headers["ETag"]
        await first_ends.aclose()
        await until_owner(second)
        assert (await second.get("/readyz")).status_code == 200
        found = await second.get(f"/v1/runs/{run}", headers={"If-None-Match": tag})
        assert found.status_code == 200, "an entity tag of the first says nothing about the second"
        assert (found.json()["state"], found.json()["step"]) == ("running", 1)
        await worker.step(2, reward=0.2)
        await eventually(second, f"/v1/runs/{run}", lambda found: found["step"] == 2)
        beat = {"attempt": attempt, "state": "running"}
        reply = await second.post(f"/v1/runs/{run}/heartbeat", json=beat, headers=bearer("service"))
        assert reply.status_code == 200, "the worker keeps its run"


@pytest.mark.anyio
async def test_one_that_is_cut_off_from_the_queue_server_writes_nothing_after_a_takeover(
    settings: ControlSettings, redis: Redis, spec: RunSpec
) -> None:
    link = CutLink(redis.connection_pool.connection_kwargs["port"])
    async with (
        link.open() as cut_url,
        control(settings, redis_url=SecretStr(cut_url)) as first,
        control(settings) as second,
    ):
        run = await create(first, spec)
        link.end()
        await until_owner(second)
        await refuses(first, spec, "has taken the history over from this one")
        assert [found["id"] for found in (await second.get("/v1/runs")).json()] == [run]
        assert await owners(first, second) == [1]


@pytest.mark.anyio
async def test_without_the_queue_server_exactly_one_goes_on(
    settings: ControlSettings, valkey: Valkey, spec: RunSpec
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(valkey.url)})
    async with control(settings) as first, control(settings) as second:
        run = await create(first, spec)
        valkey.kill()
        ends_at = time.monotonic() + 1.5 * LEASE_S
        while time.monotonic() < ends_at:
            assert await owners(first, second) == [0]
            await asyncio.sleep(0.2)
        other = await create(first, spec)
        valkey.start()
        ends_at = time.monotonic() + LEASE_S
        while time.monotonic() < ends_at:
            assert await owners(first, second) == [0], "it gets its lease again"
            await asyncio.sleep(0.1)
        assert {one["id"] for one in (await first.get("/v1/runs")).json()} == {run, other}


@pytest.mark.anyio
async def test_another_queue_server_gives_no_second_owner(
    settings: ControlSettings, redis: Redis, valkey: Valkey, spec: RunSpec
) -> None:
    async with control(settings) as first, control(settings, redis_url=SecretStr(valkey.url)) as second:
        await create(first, spec)
        ends_at = time.monotonic() + 1.5 * LEASE_S
        while time.monotonic() < ends_at:
            assert await owners(first, second) == [0]
            await asyncio.sleep(0.2)
        await refuses(second, spec, "give both the same MOR_REDIS_URL")


@pytest.mark.anyio
async def test_another_database_gives_no_second_reader_of_the_streams(
    settings: ControlSettings, redis: Redis, tmp_path: Path, spec: RunSpec
) -> None:
    other = SecretStr(f"sqlite:///{tmp_path}/other/history.sqlite3")
    settings = settings.model_copy(update={"control_lease_s": 60.0})
    async with control(settings) as first, control(settings, database_url=other) as second:
        await create(first, spec)
        assert await owners(first, second) == [0]
        await refuses(second, spec, "has the lease on the queue server")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.anyio
async def test_a_lease_that_does_not_end_is_broken(settings: ControlSettings, redis: Redis) -> None:
    """As after a change of the server's clock, or a key of another application."""
    await redis.rpush(CONTROL_LEASE, "junk")
    async with control(settings) as http:
        await until_owner(http)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("junk", ["", "junk", None])
@pytest.mark.anyio
async def test_junk_in_place_of_the_lease_costs_the_owner_nothing(
    settings: ControlSettings, redis: Redis, spec: RunSpec, junk: str | None
) -> None:
    settings = settings.model_copy(update={"control_lease_s": 1.0})
    async with control(settings) as http:
        await until_owner(http)
        if junk is None:
            await redis.delete(CONTROL_LEASE)
            await redis.rpush(CONTROL_LEASE, "of another type")
        else:
            await redis.set(CONTROL_LEASE, junk)
        async with asyncio.timeout(20):
            while await redis.pttl(CONTROL_LEASE) < 0:
                assert (await http.get("/v1/runs")).status_code == 200
                await asyncio.sleep(0.01)
        assert (await http.get("/v1/runs")).status_code == 200


def owned(http: httpx.Client) -> float:
    """Return the metric by which an alert finds a run control that waits."""
    [value] = re.findall(r"^mor_trainer_history_owned (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return float(value)


def test_a_process_that_hangs_loses_the_history_and_writes_nothing_when_it_wakes_up(
    tmp_path: Path,
    tokens_file: Path,
    redis_url: str,
    database_url: str,  # noqa: F811
    spec: RunSpec,
) -> None:
    first, second = (Processes(tmp_path / "runs", tokens_file, redis_url, tmp_path / name) for name in "ab")
    for processes in (first, second):
        processes._logs.mkdir()
        processes.environment |= {"MOR_DATABASE_URL": database_url, "MOR_CONTROL_LEASE_S": "1.5"}
    try:
        hanging = first.serve()
        second.serve(second=True)
        with first.client() as held, second.client() as free:
            body = spec.model_dump(mode="json")
            run = held.post("/v1/runs", json=body).raise_for_status().json()["id"]
            assert free.post("/v1/runs", json=body).status_code == 503
            assert (owned(held), owned(free)) == (1, 0)
            hanging.send_signal(signal.SIGSTOP)
            until(lambda: free.get("/v1/runs").status_code == 200, 30, "the second takes over")
            until(lambda: owned(free) == 1, 30, "and says so in its metrics")
            other = free.post("/v1/runs", json=body).raise_for_status().json()["id"]
            hanging.send_signal(signal.SIGCONT)
            for _ in range(20):
                reply = held.post("/v1/runs", json=body)
                assert (reply.status_code, reply.json()["title"]) == (503, "Not the owner of the history")
                assert held.get("/v1/runs").status_code == 503
            assert {found["id"] for found in free.get("/v1/runs").json()} == {run, other}
            until(lambda: owned(held) == 0, 30, "the first says so too")
            second.running()[0].kill()
            until(lambda: held.get("/v1/runs").status_code == 200, 30, "the first has it again")
            assert {found["id"] for found in held.get("/v1/runs").json()} == {run, other}
    finally:
        first.end()
        second.end()
