"""``/metrics`` needs a token on the service's port, or has a port of its own where nothing else is served."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from mor_core import auth
from mor_core.auth import Scope
from mor_core.errors import Invalid
from mor_core.metrics_server import MetricsServer
from mor_core.service import create_service
from mor_core.settings import ServiceSettings
from starlette.types import ASGIApp

from tests.core.test_service import _SERVE, write_tokens
from tests.security.headers import check_headers

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


def app(tmp_path: Path, **changes: Any) -> tuple[FastAPI, dict[Scope, str]]:
    held = {scope: auth.new_token() for scope in Scope}
    write_tokens(tmp_path / "tokens.json", **{scope.value: (token, scope) for scope, token in held.items()})
    settings = ServiceSettings(tokens_file=tmp_path / "tokens.json", **changes)
    return create_service("test", settings, lifespan, {}, version="1"), held


async def test_the_services_own_port_wants_a_token_of_scope_metrics_or_viewer(tmp_path: Path) -> None:
    service, held = app(tmp_path)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://test") as http:
        assert (await http.get("/metrics")).status_code == 401
        answers = {
            scope: await http.get("/metrics", headers={"Authorization": f"Bearer {token}"})
            for scope, token in held.items()
        }
        allowed = {scope for scope, answer in answers.items() if answer.status_code == 200}
        assert allowed == {Scope.admin, Scope.viewer, Scope.metrics}
        assert "python_info" in answers[Scope.metrics].text
        about = await http.get("/v1/about", headers={"Authorization": f"Bearer {held[Scope.metrics]}"})
        assert about.json()["facts"] is None, "the scope metrics reads nothing of the host"


async def test_with_a_port_of_its_own_it_is_off_the_services(tmp_path: Path) -> None:
    service, held = app(tmp_path, metrics_port=0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://test") as http:
        answer = await http.get("/metrics", headers={"Authorization": f"Bearer {held[Scope.admin]}"})
        assert answer.status_code == 404
        assert (await http.get("/readyz")).json() == {"ready": True, "missing": {}, "degraded": {}}


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Start a service with a metrics port; yield it with the addresses of both."""
    place = tmp_path / "address"
    settings = ServiceSettings(metrics_port=0, shutdown_grace_s=1, log_format="json")
    command = [sys.executable, "-c", _SERVE, settings.model_dump_json(), str(place)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        assert started.stderr is not None
        metrics = next(line["address"] for line in map(json.loads, started.stderr) if line["event"] == "metrics")
        deadline = time.monotonic() + 30
        while not place.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield started, place.read_text(), metrics
        started.kill()


def test_the_port_serves_metrics_alone_and_ends_with_the_process(
    process: tuple[subprocess.Popen[str], str, str],
) -> None:
    started, service, metrics = process
    assert metrics.endswith("/metrics")
    page = httpx.get(metrics)
    assert "python_info" in page.text
    check_headers(page)
    for path in ("", "/healthz", "/readyz", "/docs", "/openapi.json", "/v1/about"):
        assert httpx.get(metrics.removesuffix("/metrics") + path).status_code == 404
    assert httpx.post(metrics).status_code == 405
    assert httpx.get(f"{service}/metrics").status_code == 404
    started.terminate()
    assert started.wait(15) == -15  # uvicorn raises the signal again once it has shut down
    with pytest.raises(httpx.ConnectError):
        httpx.get(metrics)


async def test_its_end_makes_the_service_not_ready() -> None:
    class Ending(uvicorn.Server):
        def run(self, sockets: list[socket.socket] | None = None) -> None:
            return

    def ending(served: ASGIApp) -> uvicorn.Server:
        return Ending(uvicorn.Config(served))

    server = MetricsServer(ServiceSettings(metrics_port=0))
    with server.serving(ending):
        assert server._thread is not None
        server._thread.join(5)
        assert "MOR_METRICS_PORT ended" in (await server.ready() or "")


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = MetricsServer(ServiceSettings(metrics_port=taken.getsockname()[1]))
        with (
            pytest.raises(
                Invalid,
                match=r"METRICS_HOST, MOR_METRICS_PORT: cannot listen at 127\.0\.0\.1:\d+ \(Address already in use\);",
            ),
            server.serving(uvicorn.Server),
        ):
            pass
