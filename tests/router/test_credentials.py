"""A token has one holder: credentials that collide are refused; enrolments have quotas."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mor_core.auth import hash_token
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.registry import parse_record
from mor_router.config import RouterSettings
from mor_router.store import CLIENTS
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.router.conftest import TOKENS, Api, Start
from tests.router.endpoints import TOKEN, Endpoints

pytestmark = pytest.mark.anyio

ENROLMENT = "token-of-the-onboarding"
OTHER = "token-of-another-onboarding"
THIRD = "token-of-a-third-onboarding"


@pytest.fixture
def onboarding(settings: RouterSettings) -> None:
    """Add three enrolment tokens to the tokens file."""
    assert settings.tokens_file is not None
    rows = json.loads(settings.tokens_file.read_text())
    for token in (ENROLMENT, OTHER, THIRD):
        rows.append({"name": f"onboarding {token}", "scope": "enrolment", "sha256": hash_token(token)})
    settings.tokens_file.write_text(json.dumps(rows))


def body(endpoints: Endpoints, name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "url": endpoints.endpoint(name).url, "token": TOKEN, **more}


@pytest.mark.parametrize("holder", [*TOKENS.values(), ENROLMENT, "token-of-the-router-itself", "page-of-the-bank"])
async def test_no_page_token_or_secret_may_be_a_token_that_is_in_use(
    start: Start, endpoints: Endpoints, onboarding: None, holder: str
) -> None:
    async with start(service_token=SecretStr("token-of-the-router-itself")) as api:
        bank = body(endpoints, "bank", page_token_sha256=hash_token("page-of-the-bank"))
        await api.ok("POST", "/v1/clients", bank, token=ENROLMENT)
        stolen = body(endpoints, "clinic", page_token_sha256=hash_token(holder))
        reply = await api.call("POST", "/v1/clients", stolen, token=OTHER)
        assert (reply.status_code, "create a new page token" in reply.json()["detail"]) == (409, True)
        assert "bank" not in reply.text and "admin" not in reply.text, "whose it is stays hidden"
        sent = body(endpoints, "clinic", token=holder)
        reply = await api.call("POST", "/v1/clients", sent, token=OTHER)
        assert (reply.status_code, "a token of its own" in reply.json()["detail"]) == (409, True)
        rotated = await api.call("POST", "/v1/clients/bank/rotate", {"token": holder})
        assert rotated.status_code == 409
        assert [client["name"] for client in await api.ok("GET", "/v1/clients")] == ["bank"]


async def test_a_page_token_must_differ_from_the_secret_of_the_same_client(api: Api, endpoints: Endpoints) -> None:
    reply = await api.call("POST", "/v1/clients", body(endpoints, "clinic", page_token_sha256=hash_token(TOKEN)))
    assert reply.status_code == 409


async def test_a_token_added_to_the_file_later_keeps_its_scope(
    api: Api, endpoints: Endpoints, settings: RouterSettings
) -> None:
    """A client that guessed the hash of a token before it was added, from a leaked values file, takes nothing over."""
    later = "token-that-is-added-later"
    await api.ok("POST", "/v1/clients", body(endpoints, "clinic", page_token_sha256=hash_token(later)))
    assert settings.tokens_file is not None
    rows = json.loads(settings.tokens_file.read_text())
    settings.tokens_file.write_text(
        json.dumps([*rows, {"name": "new", "scope": "viewer", "sha256": hash_token(later)}])
    )
    assert (await api.ok("GET", "/v1/about", token=later))["caller"] == {"name": "new", "scope": "viewer"}


async def test_a_page_token_that_two_stored_clients_share_opens_no_page(
    start: Start, endpoints: Endpoints, redis: Redis
) -> None:
    """Earlier versions stored such clients."""
    async with start() as api:
        await api.ok("POST", "/v1/clients", body(endpoints, "clinic", page_token_sha256=hash_token("shared page")))
        stored = json.loads(await redis.hget(CLIENTS, "clinic"))
        owner = parse_record("bank", json.dumps({**stored, "name": "bank"}).encode()).owner
        secret = api.router.clients.secret_store.encrypt(SecretStr(TOKEN), owner)
        await redis.hset(CLIENTS, "bank", json.dumps({**stored, "name": "bank", "secret": secret}))
        await api.router.clients.pool.refresh()
        assert (await api.call("GET", "/v1/clients/clinic", token="shared page")).status_code == 401
        fresh = (await api.ok("POST", "/v1/clients/bank/rotate", {"inbound": True}))["token"]
        assert (await api.call("GET", "/v1/clients/bank", token=fresh)).status_code == 200
        assert (await api.call("GET", "/v1/clients/clinic", token="shared page")).status_code == 200


async def test_failed_enrolments_count_in_the_tokens_quota_for_all_replicas(
    start: Start, endpoints: Endpoints, onboarding: None
) -> None:
    async with start(enrolments_per_minute=3, enrolments_per_network=100) as api, start() as replica:
        scan = [{"name": f"c{port}", "url": f"http://127.0.0.1:{port}", "token": TOKEN} for port in range(1, 5)]
        found = [await api.call("POST", "/v1/clients", target, token=ENROLMENT) for target in scan]
        assert [reply.status_code for reply in found] == [422, 422, 422, 429]
        assert "MOR_ENROLMENTS_PER_MINUTE=3" in found[-1].json()["detail"]
        assert 0 < int(found[-1].headers["retry-after"]) <= 60
        replica.router.clients.enrolment_quota._settings.enrolments_per_minute = 3
        reply = await replica.call("POST", "/v1/clients", body(endpoints, "clinic"), token=ENROLMENT)
        assert reply.status_code == 429, "the replicas share the counters"
        await api.ok("POST", "/v1/clients", body(endpoints, "clinic"), token=OTHER)
        assert 'client="c1"' not in (await api.http.get("/metrics")).text, "failed names leave no series"


async def test_a_network_is_probed_a_bounded_number_of_times_by_all_tokens_together(
    start: Start, onboarding: None, redis: Redis
) -> None:
    async with start(enrolments_per_network=2) as api:
        found = []
        for number, token in enumerate((ENROLMENT, OTHER, THIRD, ENROLMENT)):
            target = {"name": f"c{number}", "url": f"http://127.0.0.{number + 1}:1", "token": TOKEN}
            found.append(await api.call("POST", "/v1/clients", target, token=token))
        assert [reply.status_code for reply in found] == [422, 422, 429, 429]
        assert "in one network, MOR_ENROLMENTS_PER_NETWORK=2" in found[2].json()["detail"]
        assert "half of MOR_ENROLMENTS_PER_NETWORK=2" in found[3].json()["detail"]
        for name in [name async for name in redis.scan_iter("*quota*")]:
            assert 0 < await redis.ttl(name) <= 60, "no counter outlives its minute"
        admin = {"name": "c9", "url": "http://127.0.0.1:1", "token": TOKEN}
        assert (await api.call("POST", "/v1/clients", admin)).status_code == 422, "administrators have no quota"


async def test_a_token_leaves_half_of_a_networks_quota_to_others(start: Start, onboarding: None) -> None:
    """The name server of the first token's holder answers with the network of somebody else."""
    networks = [f"127.0.{number}.1" for number in range(1, 9)]

    async def resolver(host: str, port: int) -> list[str]:
        return networks if host == "everywhere.example" else [networks[0]]

    names = EgressPolicy(allow_loopback=True, networks=(), kubernetes=(), resolver=resolver)
    async with start(names, enrolments_per_minute=100, enrolments_per_network=6, client_attempts=1) as api:

        async def attempt(host: str, token: str) -> int:
            target = {"name": "c", "url": f"http://{host}:1", "token": TOKEN}
            return (await api.call("POST", "/v1/clients", target, token=token)).status_code

        assert [await attempt("everywhere.example", ENROLMENT) for _ in range(9)] == [422] * 3 + [429] * 6
        assert [await attempt("clinic.example", OTHER) for _ in range(4)] == [422] * 3 + [429]


@asynccontextmanager
async def listening(address: str) -> AsyncIterator[tuple[int, list[str]]]:
    """Listen at ``address``; yield the port and the connections that came."""
    came: list[str] = []

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(address)
        writer.close()

    server = await asyncio.start_server(accept, address, 0)
    async with server:
        yield server.sockets[0].getsockname()[1], came


@pytest.mark.parametrize("first", [["127.0.0.1"], []], ids=["an address", "no address"])
async def test_an_enrolment_connects_only_to_the_addresses_that_its_quota_counted(
    start: Start, onboarding: None, redis: Redis, first: list[str]
) -> None:
    """DNS rebinding: the name is at a harmless address while the quota counts it, later at the one to be scanned."""
    answers = [first]

    async def resolver(host: str, port: int) -> list[str]:
        return answers.pop(0) if answers else ["127.0.7.1"]

    rebinding = EgressPolicy(allow_loopback=True, networks=(), kubernetes=(), resolver=resolver)
    async with start(rebinding) as api, listening("127.0.7.1") as (port, came):
        target = {"name": "c", "url": f"http://scan.example:{port}", "token": TOKEN}
        reply = await api.call("POST", "/v1/clients", target, token=ENROLMENT)
        assert (reply.status_code, came, answers) == (422, [], [])
        assert ("cannot be reached" if first else "has no address") in reply.json()["detail"]
        counted = [name.decode() async for name in redis.scan_iter("*quota:network*")]
        assert [name.rpartition("network:")[2] for name in counted] == ["127.0.0.0/24" for _ in first]
        found = [await api.call("POST", "/v1/clients", target, token=ENROLMENT) for _ in range(11)]
        assert (found[-1].status_code, len(came) > 0) == (429, True), "its network is counted once it is connected to"


async def test_a_name_with_many_addresses_in_a_network_costs_it_one_connection(start: Start, onboarding: None) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return [f"127.0.{network}.{number}" for number in range(1, 30) for network in (8, 9)]

    many = EgressPolicy(allow_loopback=True, networks=(), kubernetes=(), resolver=resolver)
    async with start(many, client_attempts=1) as api, listening("127.0.9.7") as (port, came):
        target = {"name": "c", "url": f"http://scan.example:{port}", "token": TOKEN}
        reply = await api.call("POST", "/v1/clients", target, token=ENROLMENT)
        assert (reply.status_code, came) == (422, []), "only the first address of each network is tried"


@pytest.mark.parametrize("forged", ["-1000000", "9999", "9223372036854775807", "abc", "", None])
async def test_a_forged_counter_neither_lifts_nor_closes_a_quota(
    start: Start, onboarding: None, redis: Redis, forged: str | None
) -> None:
    async with start(enrolments_per_minute=2, enrolments_per_network=4) as api:
        target = {"name": "c", "url": "http://127.0.0.1:1", "token": TOKEN}
        await api.call("POST", "/v1/clients", target, token=ENROLMENT)
        counters = [name async for name in redis.scan_iter("*quota*")]
        assert len(counters) == 3
        for name in counters:
            await redis.delete(name)
            await (redis.rpush(name, "x") if forged is None else redis.set(name, forged))  # type: ignore[misc]
        found = [await api.call("POST", "/v1/clients", target, token=ENROLMENT) for _ in range(3)]
        assert [reply.status_code for reply in found] == [422, 422, 429]
        assert all([0 < await redis.ttl(name) <= 60 for name in counters])


async def test_an_enrolment_token_has_a_largest_number_of_clients(
    start: Start, endpoints: Endpoints, onboarding: None
) -> None:
    async with start(clients_per_token=1) as api:
        await api.ok("POST", "/v1/clients", body(endpoints, "clinic"), token=ENROLMENT)
        started = time.monotonic()
        second = await api.call("POST", "/v1/clients", body(endpoints, "bank"), token=ENROLMENT)
        assert (second.status_code, "MOR_CLIENTS_PER_TOKEN" in second.json()["detail"]) == (429, True)
        assert "retry-after" in second.headers and time.monotonic() - started < 5
        await api.ok("POST", "/v1/clients", body(endpoints, "bank"), token=OTHER)
        await api.ok("DELETE", "/v1/clients/clinic")
        await api.ok("POST", "/v1/clients", body(endpoints, "lab"), token=ENROLMENT)


async def test_a_client_that_no_admin_enrolled_is_sent_what_the_operator_lets_unknown_ones_see(
    start: Start, endpoints: Endpoints, onboarding: None
) -> None:
    """Nor can a client with a rule of its own enrol under another name to be sent everything."""
    async with start(enrolment_asks_domains=("charts", "details"), enrolment_asks_public_only=True) as api:
        for name, asked, granted in (
            ("open", {}, ["charts", "details"]),
            ("narrow", {"domains": ["details", "medical"]}, ["details"]),
            ("other", {"domains": ["medical"]}, []),
        ):
            enrolled = await api.ok("POST", "/v1/clients", body(endpoints, name, asks=asked), token=ENROLMENT)
            assert enrolled["client"]["asks"] == {"domains": granted, "public_only": True}
        known = await api.ok("POST", "/v1/clients", body(endpoints, "known"))
        assert known["client"]["asks"] == {"domains": None, "public_only": False}
        await api.ok("PATCH", "/v1/clients/open", {"asks": {}})
        changed = await api.ok("GET", "/v1/clients/open")
        assert changed["client"]["asks"] == {"domains": None, "public_only": False}
