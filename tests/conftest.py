"""Fixtures of all test folders: a real Valkey server on loopback, and a fresh run name."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from mor_core import bundled_valkey
from mor_core.settings import StreamSettings
from mor_core.streams import connect
from pydantic import SecretStr
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.ports import free_port

pytest_plugins = ["tests.fast", "tests.parallel", "tests.repeatable_draws", "tests.shifted_clock"]

# structlog's default prints local variables with every traceback, which takes seconds for large records.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def hangups() -> Iterator[None]:
    """Have a closed terminal end the processes that a test starts, also where the tests run under ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class Valkey:
    """Server that a test may kill and start again on the same data."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        command = [str(bundled_valkey.server_binary()), *bundled_valkey.arguments(self.port, self._directory)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        with SyncRedis(port=self.port) as client:
            while True:
                try:
                    client.ping()
                    return
                except RedisConnectionError:
                    assert time.monotonic() < deadline, "valkey-server did not come up"
                    time.sleep(0.02)

    def write_out(self) -> None:
        """Wait until the append-only file has every write: a busy disk delays them by up to two seconds."""
        with SyncRedis(port=self.port) as client:
            assert client.execute_command("WAITAOF", 1, 0, 20_000)[0] == 1, "the file has not every write"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(timeout=10)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a server for the whole session."""
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    yield server.url
    server.stop()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """Return a server for one test, which may kill and restart it."""
    server = Valkey(tmp_path)
    yield server
    server.stop()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """Return a client of the session's server after emptying it."""
    client = connect(StreamSettings(redis_url=SecretStr(redis_url)))
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def run_name() -> str:
    return f"run-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Idefics3 checkpoint with random weights, shared by the session: never write to it."""
    from tests.tiny_models import build_tiny_vlm

    return build_tiny_vlm(tmp_path_factory.mktemp("tiny") / "idefics3")
