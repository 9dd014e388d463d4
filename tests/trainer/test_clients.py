"""Run control's view of the router's clients, from the real router, as the caller's own token may see it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from mor_core.auth import hash_token
from mor_router.app import create_app as create_router
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from pydantic import AnyHttpUrl, SecretStr
from redis.asyncio import Redis

from tests.router.endpoints import TOKEN, Endpoints
from tests.settings import router_settings
from tests.trainer.kit import TOKENS, bearer, running

pytestmark = pytest.mark.anyio
ROUTER = AnyHttpUrl("http://router")


@pytest.fixture
async def router(redis_url: str, redis: Redis, tokens_file: Path, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running(create_router(router_settings(redis_url, tokens_file, tmp_path))) as client:
        client.headers.update(bearer("admin"))
        yield client


async def test_state_circuit_and_card_of_each_client_and_its_own_for_a_client(
    settings: ControlSettings, router: httpx.AsyncClient
) -> None:
    tokens = {}
    servers = Endpoints()
    for name in ("alpha", "beta"):
        endpoint = servers.endpoint(name)
        body = {"name": name, "url": endpoint.url, "domains": "tests", "token": TOKEN, "state": "active"}
        tokens[name] = (await router.post("/v1/clients", json=body)).raise_for_status().json()["token"]
    paused = {"state": "paused", "reason": "moves house"}
    (await router.patch("/v1/clients/beta", json=paused)).raise_for_status()
    service = SecretStr(TOKENS["service"])
    app = create_app(settings.model_copy(update={"router_url": ROUTER, "service_token": service}), router._transport)
    async with running(app) as http:
        await app.state.tokens.refresh()
        found = (await http.get("/v1/clients", headers=bearer("viewer"))).raise_for_status().json()
        assert [(line["client"]["name"], line["client"]["state"], line["circuit"]) for line in found] == [
            ("alpha", "active", "closed"),
            ("beta", "paused", "closed"),
        ]
        assert found[1]["client"]["reason"] == "moves house"
        assert found[0]["client"]["card"]["model"] == {"name": "alpha", "version": "1"}
        own = {"Authorization": f"Bearer {tokens['beta']}"}
        [line] = (await http.get("/v1/clients", headers=own)).raise_for_status().json()
        assert line["client"]["name"] == "beta"
        (await router.delete("/v1/clients/beta")).raise_for_status()
        await app.state.tokens.refresh()
        assert (await http.get("/v1/clients", headers=own)).status_code == 401
    servers.stop()


async def test_a_missing_refusing_or_absent_router_is_an_error_with_the_cure(
    settings: ControlSettings, router: httpx.AsyncClient, tmp_path: Path, redis: Redis
) -> None:
    async with running(create_app(settings)) as http:
        reply = await http.get("/v1/clients", headers=bearer("viewer"))
        assert reply.status_code == 404 and "set MOR_ROUTER_URL" in reply.json()["detail"]
    away = settings.model_copy(update={"router_url": AnyHttpUrl("http://127.0.0.1:1")})
    async with running(create_app(away)) as http:
        reply = await http.get("/v1/clients", headers=bearer("viewer"))
        assert reply.status_code == 503 and "the router does not answer" in reply.json()["detail"]
        assert int(reply.headers["retry-after"]) > 0
    stranger = tmp_path / "others.json"
    stranger.write_text(json.dumps([{"name": "v", "scope": "viewer", "sha256": hash_token("another token")}]))
    strange = settings.model_copy(update={"router_url": ROUTER, "tokens_file": stranger})
    async with running(create_app(strange, router._transport)) as http:
        reply = await http.get("/v1/clients", headers={"Authorization": "Bearer another token"})
        assert reply.status_code == 403 and "the same tokens file" in reply.json()["detail"]
        assert TOKENS["viewer"] not in reply.text
