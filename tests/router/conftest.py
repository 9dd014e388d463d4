"""Fixtures of a router: the real app with its lifespan, a real Valkey, real reward services over loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from mor_core.auth import hash_token
from mor_router.app import create_app
from mor_router.clients.egress import EgressPolicy
from mor_router.config import RouterSettings
from mor_router.wiring import Router
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.router.endpoints import TOKEN, Endpoint, Endpoints
from tests.router.live_groups import reward_groups

TOKENS = {scope: f"{scope}-token-for-the-router" for scope in ("admin", "service", "scorer", "viewer", "labeller")}
KEY = Fernet.generate_key().decode()


@pytest.fixture(scope="session")
def endpoints() -> Iterator[Endpoints]:
    server = Endpoints()
    yield server
    server.stop()


@pytest.fixture
def settings(redis: Redis, redis_url: str, tmp_path: Path) -> RouterSettings:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(
        json.dumps([{"name": name, "scope": name, "sha256": hash_token(token)} for name, token in TOKENS.items()])
    )
    return RouterSettings(
        redis_url=SecretStr(redis_url),
        tokens_file=tokens,
        secret_key=SecretStr(KEY),
        audit_log=tmp_path / "audit.jsonl",
        allow_loopback=True,
        deadline_s=10,
        circuit_open_s=0.5,
        probe_interval_s=60,
        group_retry_s=0.1,
        lease_s=5,
        worker=False,
        anchor_share=0,
        audit_share=0,
        candidate_share=0,
    )


async def eventually(check: Callable[[], Awaitable[bool]], within_s: float = 10) -> None:
    """Wait until ``check`` holds."""
    async with asyncio.timeout(within_s):
        while True:
            if await check():
                return
            await asyncio.sleep(0.05)


class Api:
    """Calls to the router's API."""

    def __init__(self, http: httpx.AsyncClient, router: Router) -> None:
        self.http = http
        self.router = router

    async def call(self, method: str, path: str, body: Any = None, *, token: str = TOKENS["admin"]) -> httpx.Response:
        return await self.http.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"})

    async def ok(self, method: str, path: str, body: Any = None, *, token: str = TOKENS["admin"]) -> Any:
        response = await self.call(method, path, body, token=token)
        assert response.is_success, response.text
        return response.json() if response.content else None

    async def enrol(self, endpoint: Endpoint, state: str = "active") -> dict[str, Any]:
        body = {"name": endpoint.name, "url": endpoint.url, "domains": "tests", "token": TOKEN, "state": state}
        enrolled = await self.ok("POST", "/v1/clients", body)
        endpoint.calls.clear()
        assert isinstance(enrolled, dict)
        return enrolled

    async def reward(self, *responses: str, text: str = "What is it?", **more: Any) -> dict[str, Any]:
        """Reward one group as the reward stage does, and return the outcome in the shape of ``/v1/reward``."""
        item = {"item_id": "g", "messages": [{"role": "user", "content": text}], "responses": responses, **more}
        [found] = await reward_groups(self.router, [item], {})
        return found

    async def reward_groups(self, items: list[dict[str, Any]], images: Mapping[str, str]) -> list[dict[str, Any]]:
        return await reward_groups(self.router, items, images)


Start = Callable[..., AbstractAsyncContextManager[Api]]


@pytest.fixture
def start(settings: RouterSettings) -> Start:
    """Return a function that starts a router with changed settings."""

    @asynccontextmanager
    async def run(policy: EgressPolicy | None = None, **changes: Any) -> AsyncIterator[Api]:
        app = create_app(settings.model_copy(update=changes), policy)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://r") as http,
        ):
            yield Api(http, app.state.router)

    return run


@pytest.fixture
async def api(start: Start) -> AsyncIterator[Api]:
    async with start() as running:
        yield running
