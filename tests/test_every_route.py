"""Every route of every service checks its caller before it reads a body, and bounds the body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from mor_core.json_route import JsonRoute
from mor_reward.app import create_app as reward
from mor_reward.config import RewardSettings
from mor_rollout.app import create_app as rollout
from mor_rollout.config import RolloutSettings
from mor_router.app import create_app as router
from mor_router.config import RouterSettings
from mor_trainer.app import create_app as control
from mor_trainer.config import ControlSettings
from starlette.routing import Mount

pytestmark = pytest.mark.anyio

OPEN = {"/", "/healthz", "/readyz", "/startupz", "/openapi.json", "/docs", "/docs/{file}", "/static"}
"""Paths that need no token: none of them has a body."""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FastAPI]]:
    folder = tmp_path_factory.mktemp("services")
    scorer = folder / "scorer.py"
    scorer.write_text("def score(messages, responses, images): return [0.0 for _ in responses]\n")
    yield [
        control(ControlSettings(runs_dir=folder)),
        router(RouterSettings()),
        rollout(RolloutSettings(model="any/model", weight_transfer="nccl")),
        reward(RewardSettings(function=f"{scorer}:score")),
    ]


def guarded(services: list[FastAPI]) -> Iterator[tuple[FastAPI, APIRoute]]:
    for app in services:
        for route in app.routes:
            path = route.path if isinstance(route, Mount) else getattr(route, "path", "")
            if path not in OPEN:
                assert isinstance(route, APIRoute), f"{app.title}: {path} is no API route, so its caller is not checked"
                yield app, route


async def call(app: FastAPI, method: str, path: str, read: list[int]) -> int:
    """Call with a body without an end, count the bytes that were read, and return the status."""
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        read.append(65536)
        return {"type": "http.request", "body": b" " * 65536, "more_body": True}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    return statuses[0]


async def test_a_body_without_a_token_is_not_read(services: list[FastAPI]) -> None:
    called = 0
    for app, route in guarded(services):
        for method in route.methods:
            read: list[int] = []
            path = route.path_format.replace("{", "").replace("}", "")
            if "{version}" in route.path_format:
                path = route.path_format.format(version=1, **dict.fromkeys(("run", "name", "file"), "a"))
            assert await call(app, method, path, read) == 401, f"{app.title}: {method} {route.path}"
            assert not read, f"{app.title}: {method} {route.path} read a body"
            called += 1
    assert called > 50


def test_each_route_with_a_body_declares_its_limit(services: list[FastAPI]) -> None:
    unlimited = [
        f"{app.title}: {route.path}"
        for app, route in guarded(services)
        if route.body_field is not None and not isinstance(route, JsonRoute)
    ]
    assert unlimited == []
