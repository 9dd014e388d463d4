"""Retries, errors and compatibility of the transport, over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import stamina
from fastapi import FastAPI, Response
from mor_client.config import ClientSettings
from mor_client.errors import ServiceError
from mor_client.transport import Transport
from mor_core.errors import Conflict, Unavailable
from mor_core.service import create_service
from mor_core.settings import ServiceSettings
from mor_core.wire import Wire

from tests.client.installation import served


class Answer(Wire):
    number: int


class Faulty:
    """Service that fails on demand and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.failures: list[Any] = []
        self.app = create_service("faulty", ServiceSettings(), self._lifespan, {}, version="1")
        self.app.add_api_route("/thing", self._answer, methods=["GET", "POST"])
        self.app.add_api_route("/html", lambda: Response("<html>Sign in</html>", 403), methods=["GET"])

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield

    async def _answer(self) -> Any:
        self.calls += 1
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return Response(status_code=failure)
        return {"number": 1, "added_by_a_newer_service": True}


@pytest.fixture(scope="module")
def served_fault() -> Iterator[tuple[Faulty, str]]:
    faulty = Faulty()
    with served(faulty.app) as address:
        yield faulty, address


@pytest.fixture
def faulty(served_fault: tuple[Faulty, str]) -> Faulty:
    served_fault[0].calls, served_fault[0].failures = 0, []
    return served_fault[0]


@pytest.fixture
def transport(served_fault: tuple[Faulty, str], faulty: Faulty) -> Iterator[Transport]:
    stamina.set_testing(True, attempts=3)
    found = Transport("control", served_fault[1], ClientSettings())
    yield found
    found.close()
    stamina.set_testing(False)


def test_fields_of_a_newer_service_are_ignored(transport: Transport) -> None:
    assert transport.get("/thing", Answer) == Answer(number=1)
    with pytest.raises(ServiceError, match="that this version cannot parse"):
        transport.get("/thing", list[Answer])


@pytest.mark.parametrize(
    ("method", "failure", "calls"),
    [
        ("GET", Unavailable("loading", 0.01), 2),
        ("POST", Unavailable("loading", 0.01), 2),
        ("GET", 502, 2),
        ("POST", 502, 1),
        ("GET", Conflict("no; do something else"), 1),
        ("GET", RuntimeError("broken"), 1),
    ],
)
def test_only_safe_calls_are_retried(
    transport: Transport, faulty: Faulty, method: str, failure: Any, calls: int
) -> None:
    faulty.failures = [failure]
    if calls == 2:
        assert transport.call(method, "/thing", Answer).number == 1
    else:
        with pytest.raises(ServiceError):
            transport.call(method, "/thing", Answer)
    assert faulty.calls == calls


def test_attempts_are_limited(transport: Transport, faulty: Faulty) -> None:
    faulty.failures = [503] * 10
    with pytest.raises(ServiceError) as caught:
        transport.get("/thing", Answer)
    assert faulty.calls == 3
    assert caught.value.status_code == 503


def test_errors_have_the_cure_once(transport: Transport, faulty: Faulty) -> None:
    faulty.failures = [Conflict("it is stopped; resume it first")]
    with pytest.raises(ServiceError) as caught:
        transport.get("/thing", Answer)
    assert (str(caught.value), caught.value.cure) == ("control: it is stopped; resume it first", "resume it first")
    with pytest.raises(ServiceError, match="answered 403: <html>Sign in</html>; check the address of this service"):
        transport.get("/html", Answer)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "set MOR_CONTROL_URL, or control_url in the configuration file"),
        ("http://127.0.0.1:9", "check that it is running and reachable"),
        ("127.0.0.1", "write it as http://host:port"),
    ],
)
def test_invalid_addresses_are_errors_with_the_cure(url: str | None, message: str) -> None:
    transport = Transport("control", url, ClientSettings(attempts=1))
    with pytest.raises(ServiceError, match=message) as caught:
        transport.get("/thing", Answer)
    assert caught.value.status_code is None
    transport.close()


def test_settings_come_from_the_environment_then_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mor"
    folder.mkdir()
    (folder / "config.toml").write_text('control_url = "http://file"\nrouter_url = "http://file"\ntoken_file = "t"\n')
    (folder / "t").write_text("secret\n")
    monkeypatch.delenv("MOR_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("MOR_CONTROL_URL", "http://environment")
    settings = ClientSettings()
    assert (settings.control_url, settings.router_url) == ("http://environment", "http://file")
    assert settings.bearer() == "secret"
    (folder / "t").chmod(0o644)
    assert settings.exposed_token_file()
