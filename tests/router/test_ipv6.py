"""Clients, services and their callers at IPv6 addresses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from mor_client.config import read_settings
from mor_client.transport import Transport
from mor_core import process
from mor_core.service_info import ServiceInfo

from tests.router.conftest import Start
from tests.router.endpoints import TOKEN, Endpoints
from tests.trainer.conftest import tokens_file
from tests.trainer.kit import TOKENS, Processes

__all__ = ["tokens_file"]


@pytest.fixture
def ipv6_address(endpoints: Endpoints) -> Iterator[str]:
    """Serve the reward endpoints at ``::1`` too, and return the address."""
    listener = process.listen("::1", 0, "")
    server = uvicorn.Server(uvicorn.Config(endpoints.app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield process.url_of(listener, tls=False)
    server.should_exit = True
    thread.join(timeout=10)


@pytest.mark.anyio
async def test_a_client_at_an_ipv6_address_is_enrolled_and_called(
    start: Start, endpoints: Endpoints, ipv6_address: str
) -> None:
    endpoint = endpoints.endpoint("clinic")
    endpoint.url = endpoint.url.replace(endpoints.address, ipv6_address)
    assert ipv6_address.startswith("http://[::1]:")
    async with start() as api:
        await api.enrol(endpoint)
        assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
        assert endpoint.headers[-1]["host"] == ipv6_address.removeprefix("http://")
        body = {"name": "x", "url": "http://[fd00::1]:8400", "token": TOKEN}
        assert "MOR_ALLOWED_NETWORKS" in (await api.call("POST", "/v1/clients", body)).json()["detail"]


def test_a_service_listens_at_all_addresses(tmp_path: Path, tokens_file: Path, redis_url: str) -> None:
    with process.listen("::1", 0, "") as listener:
        metrics_port = listener.getsockname()[1]
    processes = Processes(tmp_path / "runs", tokens_file, redis_url, tmp_path)
    processes.environment |= {"MOR_HOST": "::", "MOR_METRICS_HOST": "::", "MOR_METRICS_PORT": str(metrics_port)}
    try:
        processes.serve()
        assert processes.address.startswith("http://[::]:")
        port = processes.address.rpartition(":")[2]
        for host in ("[::1]", "127.0.0.1"):
            transport = Transport("control", f"http://{host}:{port}", read_settings(token=TOKENS["viewer"]))
            assert ServiceInfo.model_validate_json(transport.once("GET", "/v1/about").content).caller.name
            transport.close()
            assert "mor_clock_skew_seconds" in httpx.get(f"http://{host}:{metrics_port}/metrics").text
        assert f"http://[::]:{metrics_port}/metrics" in processes.log("serve")
    finally:
        processes.end()


@pytest.mark.parametrize("host", ["::", "[::]", "::1", "[::1]"])
def test_an_address_may_have_the_brackets_of_a_url(host: str) -> None:
    with process.listen(host, 0, "MOR_HOST, MOR_PORT") as listener:
        port = listener.getsockname()[1]
        assert process.url_of(listener, tls=False) == f"http://[{host.strip('[]')}]:{port}"
