"""Kubernetes Services are enrolled and removed, with an API server that discards watches and has outages."""

from __future__ import annotations

import base64
import functools
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from mor_router.clients.discovery import discovery
from mor_router.clients.discovery.cluster import load_client
from mor_router.clients.egress import EgressPolicy
from mor_router.leadership import Leadership

from tests.helm.api_server import ApiServer
from tests.router.conftest import Api, Start, eventually
from tests.router.endpoints import TOKEN, Endpoint, Endpoints

pytestmark = pytest.mark.anyio

NEEDED = {("list", "services"), ("watch", "services"), ("list", "endpointslices"), ("get", "secrets")}
"""Rights that the charts' Role grants."""


@pytest.fixture
def cluster() -> Iterator[ApiServer]:
    load_client()  # here, because it may take longer than a test waits
    server = ApiServer()
    for namespace in ("team-a", "team-b"):
        server.put("v1", "namespaces", {"metadata": {"name": namespace}})
    yield server
    server.stop()


@pytest.fixture
def scorer() -> Iterator[Endpoint]:
    """Run a reward service at the root of its address, as behind a Service."""
    server = Endpoints()
    endpoint = Endpoint(server.address)
    server.app.add_api_route("/v1/card", endpoint.card, methods=["GET"], response_model=None)
    server.app.add_api_route("/v1/score", endpoint.scores, methods=["POST"], response_model=None)
    yield endpoint
    server.stop()


class Team:
    """Changes that a team makes in its namespace."""

    def __init__(self, cluster: ApiServer, namespace: str, scorer: Endpoint) -> None:
        self._cluster = cluster
        self.namespace = namespace
        self._port = int(scorer.url.rpartition(":")[2])

    def offer(self, name: str, *, address: str = "127.0.0.1", ready: bool = True, token: str = TOKEN) -> None:
        metadata = {"name": name, "namespace": self.namespace}
        self._cluster.put(
            "v1", "secrets", {"metadata": metadata, "data": {"token": base64.b64encode(token.encode()).decode()}}
        )
        endpoint = {"addresses": [address], "conditions": {"ready": ready}}
        labels = {"kubernetes.io/service-name": name}
        slices = {"addressType": "IPv4", "endpoints": [endpoint], "ports": [{"name": "http", "port": self._port}]}
        self._cluster.put(
            "discovery.k8s.io/v1", "endpointslices", {"metadata": metadata | {"labels": labels}, **slices}
        )
        spec: dict[str, Any] = {"ports": [{"name": "http", "port": self._port}], "selector": {"app": name}}
        labelled = metadata | {"labels": {"mor.dev/reward": "true"}, "annotations": {"mor.dev/domains": "charts"}}
        self._cluster.put("v1", "services", {"metadata": labelled, "spec": spec})

    def withdraw(self, name: str) -> None:
        self._cluster.delete("v1", "services", self.namespace, name)


@pytest.fixture
def team(cluster: ApiServer, scorer: Endpoint) -> Team:
    return Team(cluster, "team-a", scorer)


Begin = Any


@pytest.fixture
def begin(start: Start, cluster: ApiServer, tmp_path: Path) -> Begin:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig())

    async def resolve(_: str, __: int) -> list[str]:
        return ["127.0.0.1"]

    networks = (ip_network("127.0.0.0/8"),)

    def run(*namespaces: str) -> AbstractAsyncContextManager[Api]:
        return start(
            EgressPolicy(allow_loopback=False, networks=(), kubernetes=networks, resolver=resolve),
            kubernetes_namespaces=namespaces or ("team-a",),
            kubernetes_networks=networks,
            kubernetes_config=kubeconfig,
            kubernetes_resync_s=1.0,
        )

    return run


@pytest.fixture
async def discovering(begin: Begin) -> AsyncIterator[Api]:
    async with begin() as api:
        yield api


async def clients(api: Api, *wanted: str, within_s: float = 30) -> dict[str, Any]:
    """Return the enrolled clients, once they are ``wanted``."""
    found: dict[str, Any] = {}

    async def there() -> bool:
        nonlocal found
        found = {client["name"]: client for client in await api.ok("GET", "/v1/clients")}
        return set(found) == set(wanted)

    await eventually(there, within_s)
    return found


async def test_a_labelled_service_is_enrolled_on_probation_and_removed_with_the_service(
    discovering: Api, team: Team, cluster: ApiServer
) -> None:
    team.offer("clinic")
    found = (await clients(discovering, "clinic.team-a"))["clinic.team-a"]
    assert (found["source"], found["state"], found["domains"]) == ("kubernetes", "probation", "charts")
    assert found["url"].startswith("http://clinic.team-a.svc:")
    Team(cluster, "team-b", Endpoint(found["url"])).offer("stranger")
    team.withdraw("clinic")
    await clients(discovering)
    assert {(request.verb, request.resource) for request in cluster.requests} - {("create", "namespaces")} == NEEDED
    assert {request.namespace for request in cluster.requests} == {"team-a"}


async def test_discarded_watches_and_an_outage_lose_and_miss_no_client(
    discovering: Api, team: Team, cluster: ApiServer
) -> None:
    team.offer("clinic")
    await clients(discovering, "clinic.team-a")
    cluster.compact()
    team.offer("bank")
    await clients(discovering, "clinic.team-a", "bank.team-a")
    cluster.set_unavailable(True)
    team.withdraw("bank")
    team.offer("lab")
    count = len(cluster.requests)
    assert set(await clients(discovering, "clinic.team-a", "bank.team-a")) == {"clinic.team-a", "bank.team-a"}
    assert len(cluster.requests) == count
    cluster.set_unavailable(False)
    await clients(discovering, "clinic.team-a", "lab.team-a")


async def test_a_restarted_router_finds_the_changes_meanwhile(
    begin: Begin, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that starts waits for the end of its predecessor's lease."""
    monkeypatch.setattr(discovery, "Leadership", functools.partial(Leadership, lease_s=2.0))
    async with begin() as api:
        team.offer("clinic")
        enrolled = (await clients(api, "clinic.team-a"))["clinic.team-a"]
    team.offer("bank")
    async with begin() as api:
        found = await clients(api, "clinic.team-a", "bank.team-a")
        assert found["clinic.team-a"]["enrolled_at"] == enrolled["enrolled_at"]
    async with begin("team-b") as api:
        await clients(api)


async def test_tokens_addresses_and_readiness_are_followed(discovering: Api, team: Team, scorer: Endpoint) -> None:
    team.offer("clinic", ready=False)
    team.offer("bank", address="10.9.9.9")
    team.offer("lab", token="not-the-one-it-wants")
    team.offer("ward")
    await clients(discovering, "ward.team-a")

    team.offer("clinic")
    await clients(discovering, "ward.team-a", "clinic.team-a")

    scorer.token = "a-fresh-token-of-the-service"
    team.offer("ward", token=scorer.token)

    async def answers() -> bool:
        known = discovering.router.clients.pool.records["ward.team-a"]
        return (await discovering.router.clients.pool.client(known.name).card(5)).model is not None

    async def rotated() -> bool:
        try:
            return await answers()
        except Exception:
            return False

    await eventually(rotated, 30)

    team.offer("ward", address="192.0.2.1", token=scorer.token)

    async def state(wanted: str) -> bool:
        return (await discovering.ok("GET", "/v1/clients/ward.team-a"))["client"]["state"] == wanted

    await eventually(lambda: state("paused"), 30)
    team.offer("ward", token=scorer.token)
    await eventually(lambda: state("probation"), 30)


async def test_a_client_name_in_use_cannot_be_enrolled_again(
    discovering: Api, team: Team, endpoints: Endpoints, caplog: pytest.LogCaptureFixture
) -> None:
    record = endpoints.endpoint("clinic")
    body = {"name": "clinic.team-a", "url": record.url, "token": TOKEN}
    refused = await discovering.call("POST", "/v1/clients", body)
    assert refused.status_code == 422, "a loopback address is not for the API"
    team.offer("clinic")
    await clients(discovering, "clinic.team-a")
    again = await discovering.call("POST", "/v1/clients", body)
    assert again.status_code == 409
