"""A wrong address of a service is told by the answer: another service, https for http, http for https."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from mor_core import service_addresses
from mor_core.failures import describe_failure, quote_failure
from mor_core.service import create_service
from mor_core.service_addresses import CONTROL, HEADER, REWARD, ROLLOUT, ROUTER, other_service
from mor_core.settings import ServiceSettings

from tests.certificates import self_signed

TITLES = (CONTROL, ROUTER, ROLLOUT, REWARD)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(("found", "wanted"), list(itertools.product(TITLES, TITLES)))
def test_each_mix_of_services_is_named(found: str, wanted: str) -> None:
    problem = other_service({HEADER: found}, wanted)
    if found == wanted:
        assert problem is None
        return
    assert problem is not None
    assert problem.startswith(f"this is the address of {service_addresses._WORDS[found]}, not of ")


def test_an_answer_of_something_else_is_no_other_service() -> None:
    assert other_service({}, ROUTER) is None
    assert other_service({HEADER: "a gateway"}, ROUTER) is None


@pytest.mark.anyio
async def test_every_answer_names_the_service() -> None:
    app = create_service(ROUTER, ServiceSettings(), lifespan, {}, version="1")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as http:
        for path in ("/healthz", "/v1/about", "/nowhere", "/docs"):
            reply = await http.get(path)
            assert reply.headers[HEADER] == ROUTER, path


@pytest.mark.parametrize("tls", [False, True])
def test_the_other_scheme_is_the_cure(tls: bool, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for file, content in zip((certificate, key), self_signed(), strict=True):
        file.write_bytes(content)
    app = create_service(ROUTER, ServiceSettings(), lifespan, {}, version="1")
    files = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)} if tls else {}
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, **files))  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"  # the kernel accepts before the server does
        wrong, right = ("http", "https") if tls else ("https", "http")
        with pytest.raises(httpx.TransportError) as failed:
            httpx.get(f"{wrong}://{address}/healthz", timeout=120, trust_env=False)
        server.should_exit = True
        thread.join(timeout=60)
    for described in (describe_failure(failed.value), quote_failure(failed.value)):
        assert f"write {right}:// in its address" in described
