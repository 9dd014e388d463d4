"""A client that lost its weight does not get it back by a removal and another enrolment."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mor_core.auth import hash_token
from mor_router.config import RouterSettings
from redis.asyncio import Redis

from tests.router.conftest import Api, Start
from tests.router.endpoints import TOKEN, Endpoints

pytestmark = pytest.mark.anyio
ENROLMENT = "enrolment-token"


@pytest.fixture
def onboarding(settings: RouterSettings) -> None:
    assert settings.tokens_file is not None
    rows = json.loads(settings.tokens_file.read_text())
    for name, token in (("onboarding", ENROLMENT), ("other", "other-token")):
        rows.append({"name": name, "scope": "enrolment", "sha256": hash_token(token)})
    settings.tokens_file.write_text(json.dumps(rows))


def body(url: str, name: str) -> dict[str, Any]:
    return {"name": name, "url": url, "token": TOKEN, "page_token_sha256": hash_token(f"page of {name}")}


async def distrusted(api: Api, name: str) -> bool:
    record = await api.router.clients.registry.get(name)
    return record.distrusted_at is not None and record.state == "probation"


async def convicted(api: Api, url: str, name: str) -> None:
    """Enrol a client by a token, distrust it as an audit does, and have it remove itself."""
    await api.ok("POST", "/v1/clients", body(url, name), token=ENROLMENT)
    await api.ok("PATCH", f"/v1/clients/{name}", {"state": "active"})
    await api.router.trust.drift.distrust(name, "misleads audited groups")
    await api.ok("DELETE", f"/v1/clients/{name}", token=f"page of {name}")


@pytest.mark.parametrize(
    ("name", "at", "token", "doubted"),
    [
        ("clinic", "elsewhere", "other-token", True),
        ("another", "clinic", "other-token", True),
        ("another", "elsewhere", ENROLMENT, True),
        ("another", "elsewhere", "other-token", False),
    ],
    ids=["same name", "same address", "same token", "nothing in common"],
)
async def test_a_distrusted_client_that_enrols_again_is_distrusted(
    start: Start, endpoints: Endpoints, onboarding: None, name: str, at: str, token: str, doubted: bool
) -> None:
    async with start() as api:
        urls = {each: endpoints.endpoint(each).url for each in ("clinic", "elsewhere")}
        await convicted(api, urls["clinic"], "clinic")
        enrolled = await api.ok("POST", "/v1/clients", body(urls[at], name), token=token)
        assert await distrusted(api, name) == doubted
        assert ("in place of client clinic" in (enrolled["client"]["reason"] or "")) == doubted
        await api.ok("PATCH", f"/v1/clients/{name}", {"state": "probation"})
        assert not await distrusted(api, name), "an admin restores trust"


async def test_an_admin_enrols_whom_it_trusts_and_a_trusted_client_leaves_nothing(
    start: Start, endpoints: Endpoints, onboarding: None
) -> None:
    url = endpoints.endpoint("clinic").url
    async with start() as api:
        await api.ok("POST", "/v1/clients", body(url, "bank"), token=ENROLMENT)
        await api.ok("DELETE", "/v1/clients/bank", token="page of bank")
        await api.ok("POST", "/v1/clients", body(url, "bank"), token=ENROLMENT)
        assert not await distrusted(api, "bank")
        await convicted(api, url, "clinic")
        await api.ok("POST", "/v1/clients", body(url, "clinic"))
        assert not await distrusted(api, "clinic")


async def test_a_pause_hides_no_distrust_and_junk_stops_no_enrolment(
    start: Start, endpoints: Endpoints, onboarding: None, redis: Redis
) -> None:
    url = endpoints.endpoint("clinic").url
    async with start() as api:
        await api.ok("POST", "/v1/clients", body(url, "clinic"), token=ENROLMENT)
        await api.router.trust.drift.distrust("clinic", "misleads audited groups")
        await api.ok("PATCH", "/v1/clients/clinic", {"state": "paused"})
        await api.ok("DELETE", "/v1/clients/clinic", token="page of clinic")
        places = [place async for place in redis.scan_iter("*former*")]
        assert len(places) == 3 and all([0 < await redis.ttl(place) <= 90 * 86400 for place in places])
        await api.ok("POST", "/v1/clients", body(url, "clinic"), token=ENROLMENT)
        assert await distrusted(api, "clinic")
        await api.ok("DELETE", "/v1/clients/clinic")
        for place in places:
            await redis.delete(place)
            await redis.rpush(place, "x")
        await api.ok("POST", "/v1/clients", body(url, "clinic"), token=ENROLMENT)
        assert not await distrusted(api, "clinic")
