"""Every route of every service: an unexpected error and a refused body put no secret and no private text out."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import fastapi.routing
import httpx
import pytest
from cryptography.fernet import Fernet
from fastapi import FastAPI
from fastapi.routing import APIRoute
from mor_core import bounded_json
from mor_core.auth import hash_token
from mor_reward.app import create_app as create_reward
from mor_reward.config import RewardSettings
from mor_rollout.app import create_app as create_rollout
from mor_rollout.config import RolloutSettings
from mor_router.app import create_app as create_router
from mor_router.config import RouterSettings
from mor_trainer.app import create_app as create_trainer
from mor_trainer.config import ControlSettings
from prometheus_client import REGISTRY, generate_latest
from pydantic import SecretStr

from tests.secrecy.marks import MARKS, encoded, fail_async, found, lines, logged, quote_all

pytestmark = pytest.mark.anyio

ADMIN = "admin-token-of-this-test"
FUNCTION = "def score(messages, responses, images):\n    return [0.0] * len(responses)\n"


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FastAPI]:
    folder = tmp_path_factory.mktemp("services")
    tokens, function = folder / "tokens.json", folder / "function.py"
    tokens.write_text(json.dumps([{"name": "ops", "scope": "admin", "sha256": hash_token(ADMIN)}]))
    function.write_text(FUNCTION)
    redis = SecretStr(f"redis://mor:{MARKS['redispassword']}@127.0.0.1:1/0")
    key = SecretStr(Fernet.generate_key().decode())
    made = {
        "reward": create_reward(RewardSettings(tokens_file=tokens, function=f"{function}:score")),
        "router": create_router(RouterSettings(tokens_file=tokens, redis_url=redis, secret_key=key)),
        "rollout": create_rollout(
            RolloutSettings(tokens_file=tokens, model="none", redis_url=redis, weight_transfer="nccl")
        ),
        "trainer": create_trainer(ControlSettings(tokens_file=tokens, redis_url=redis, runs_dir=folder / "runs")),
    }
    made["router"].state.router = object()  # dependencies take it from there before the body is refused
    return made


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    for route in app.routes:
        if isinstance(route, APIRoute):
            yield from itertools.product(sorted(route.methods), [route.path])


def private_body() -> dict[str, Any]:
    """Return a body that no route accepts, with marks as values, as names of fields and as pictures."""
    picture = encoded(MARKS["picture"] * 3)
    return {
        **MARKS,
        "token": MARKS["clientsecret"],
        "name": {"nested": MARKS["pagetoken"]},
        "items": [{"item_id": [], "messages": MARKS["prompt"], "responses": MARKS["response"], "objective": 7}],
        "messages": [{"role": MARKS["prompt"], "content": [{"type": MARKS["prompt"], "text": MARKS["response"]}]}],
        "images": {"x": picture},
        "kind": MARKS["preference"],
    }


async def call_all(app: FastAPI, buffer: Any) -> dict[tuple[str, str], httpx.Response]:
    """Call every route with marks in query, headers and body; return the answers."""
    answers = {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {ADMIN}", "Cookie": f"session={MARKS['pagetoken']}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
        for method, path in routes(app):
            url = re.sub(r"\{[^}]*\}", "7", path)
            body = None if method == "GET" else private_body()
            answers[method, path] = await http.request(
                method, url, json=body, params={"token": MARKS["enrolmenttoken"]}
            )
    return answers


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("service", ["reward", "router", "rollout", "trainer"])
async def test_an_unexpected_error_on_any_route_shows_nothing(
    apps: dict[str, FastAPI], service: str, style: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure comes after the body was read and parsed, with all of it in scope and in the exception's message."""
    monkeypatch.setattr(bounded_json, "parse", lambda _, content: json.loads(content))  # accepts every body
    monkeypatch.setattr(fastapi.routing, "solve_dependencies", fail_async)
    with logged(style) as buffer:
        answers = await call_all(apps[service], buffer)
    assert len(answers) >= 5
    for (method, path), answer in answers.items():
        assert answer.status_code == 500, (method, path)
        assert answer.headers["content-type"] == "application/problem+json"
        assert not found(answer.text + str(answer.headers)), (method, path)
    log = buffer.getvalue()
    assert not found(log)
    assert ADMIN not in log
    assert log.count("unhandled error") == len(answers)
    assert not found(generate_latest(REGISTRY).decode())
    if style == "json":
        unhandled = [line for line in lines(buffer) if line["event"] == "unhandled error"]
        assert all(line["exception"][0]["exc_type"] == "Quoting" for line in unhandled)


@pytest.mark.parametrize("service", ["reward", "router", "rollout", "trainer"])
async def test_a_refused_request_is_described_without_its_content(apps: dict[str, FastAPI], service: str) -> None:
    """Names of unknown fields are told, values are not."""
    with logged() as buffer:
        answers = await call_all(apps[service], buffer)
    refused = {route: answer for route, answer in answers.items() if answer.status_code == 422}
    assert refused or service == "rollout"
    for route, answer in refused.items():
        assert not found(answer.text), (route, answer.text)
    assert not found(buffer.getvalue())


def test_the_marks_are_found_where_they_are() -> None:
    for kind, mark in MARKS.items():
        for text in (mark, encoded(mark), encoded(f"ab{mark}cd"), json.dumps(mark)):
            assert found(text) == [kind]
    assert found(quote_all()) == sorted(MARKS)
