"""Access of each scope to each route and field of the four services, as docs/security.md lists it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from mor_core.auth import Access, access_of, hash_token, marks_of, public, require
from mor_core.visibility import HiddenFrom, OwnRows, Scope
from mor_reward.app import create_app as create_reward
from mor_reward.config import RewardSettings
from mor_rollout import weight_receiver
from mor_rollout.app import create_app as create_rollout
from mor_rollout.config import RolloutSettings
from mor_router.app import create_app as create_router
from mor_router.clients.probe_item import PROBE_IMAGES, PROBE_ITEM
from mor_trainer.app import create_app as create_control
from mor_trainer.config import ControlSettings
from pydantic import AnyHttpUrl, SecretStr
from redis.asyncio import Redis
from starlette.routing import Mount

from tests.router.conftest import eventually
from tests.router.endpoints import TOKEN, Endpoints, html
from tests.settings import router_settings
from tests.trainer.control import Worker
from tests.trainer.kit import make_spec, running

pytestmark = pytest.mark.anyio

OWN, RIVAL = "alpha", "the-rival"
TOKENS = {scope: f"token of scope {scope}" for scope in Scope}
SCORING = {"/v1/reward", "/v1/adapters/openrlhf", "/v1/adapters/verify"}


def bearer(scope: Scope | None) -> dict[str, str]:
    return {} if scope is None else {"Authorization": f"Bearer {TOKENS[scope]}"}


@dataclass
class Installation:
    """The four services with a run, two clients and all that they report about each other."""

    apps: dict[str, FastAPI] = field(default_factory=dict)
    http: dict[str, httpx.AsyncClient] = field(default_factory=dict)
    run: str = ""

    def routes(self) -> Iterator[tuple[str, Any]]:
        for name, app in self.apps.items():
            yield from ((name, route) for route in app.routes)

    def path(self, route: APIRoute, client: str = OWN) -> str:
        values = {"run": self.run, "name": client, "sha256": "ab" * 32, "letter": "1", "alert": "1", "version": "0"}
        return route.path.format(**values, file="model.safetensors", objective="helpful", audit=f"{'0' * 12}-5-a")


def tokens(folder: Path) -> Path:
    names = {scope: OWN if scope is Scope.client else scope for scope in Scope}
    path = folder / "tokens.json"
    path.write_text(json.dumps([{"name": names[s], "scope": s, "sha256": hash_token(t)} for s, t in TOKENS.items()]))
    path.chmod(0o600)
    return path


def sample(*clients: str) -> dict[str, Any]:
    scores = [
        {"client": c, "status": "ok", "detail": f"error of {c}", "weight": 0.5, "raw": [2.0], "calibrated": [1.0]}
        for c in clients
    ]
    unsent = {"client": OWN, "status": "not_asked", "weight": 0.0}
    return {
        "group_id": "g", "prompt_id": "p", "domain": None, "prompt": "user: what?", "images": [], "weights_version": 1,
        "gate_version": 1, "fusion": "weighted", "responses": ["a"], "rewards": [1.0], "advantages": [0.7],
        "clients": scores if OWN in clients else [*scores, unsent],
    }  # fmt: skip


async def report(control: httpx.AsyncClient, redis: Redis, run: str) -> None:
    """Report a step, samples, an alert and a dead letter of a run, which name both clients."""
    control.headers.update(bearer(Scope.admin))
    taken = await control.post("/v1/runs/claim", json={"worker": "w1"})
    worker = Worker(redis, run, taken.raise_for_status().json()["attempt"])
    figures = {name: {"reward_mean": 0.1, "weight": 0.5, "failures": {}} for name in (OWN, RIVAL)}
    domains = {"charts": {"groups": 1, "weights": {OWN: 0.4, RIVAL: 0.6}}}
    await worker.report("samples", 1, {"groups": [sample(OWN, RIVAL), sample(RIVAL)], "thumbnails": {}})
    letter = {"stage": "router", "stream": "rollouts", "attempts": 3, "record": f"scores of {RIVAL}"}
    dropped = {"name": "group_dropped", "reason": f"{RIVAL} failed", "group_id": "g", "letter": letter}
    await worker.report("alert", 1, dropped)
    step = {"reward_mean": 0.1, "step_seconds": 2.0, "seconds": {}, "clients": figures, "domains": domains}
    await worker.report("step", 1, step)

    async def stepped() -> bool:
        return bool((await control.get(f"/v1/runs/{run}")).json()["step"] == 1)

    await eventually(stepped)


@pytest.fixture
async def installation(tmp_path: Path, redis: Redis, redis_url: str) -> AsyncIterator[Installation]:
    file, endpoints = tokens(tmp_path), Endpoints()
    (tmp_path / "scorer.py").write_text("def score(messages, responses, images): return [0.0 for _ in responses]\n")
    found = Installation()
    found.apps = {
        "router": create_router(router_settings(redis_url, file, tmp_path)),
        "reward": create_reward(
            RewardSettings(function=f"{tmp_path / 'scorer.py'}:score", tokens_file=file, threads=1)
        ),
        "rollout": create_rollout(RolloutSettings(model="any/model", tokens_file=file)),
    }
    found.apps["rollout"].include_router(weight_receiver.router)
    async with AsyncExitStack() as stack:
        for name in ("router", "reward"):
            found.http[name] = await stack.enter_async_context(running(found.apps[name]))
        settings = ControlSettings(
            runs_dir=tmp_path / "runs", tokens_file=file, redis_url=SecretStr(redis_url),
            router_url=AnyHttpUrl("http://router"), service_token=SecretStr(TOKENS[Scope.service]),
        )  # fmt: skip
        found.apps["control"] = create_control(settings, found.http["router"]._transport)
        found.http["control"] = await stack.enter_async_context(running(found.apps["control"]))
        # The engine does not start: access is decided before a route needs it.
        transport = httpx.ASGITransport(found.apps["rollout"], raise_app_exceptions=False)
        found.http["rollout"] = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://t")
        )
        for name in (OWN, RIVAL):
            endpoint = endpoints.endpoint(name)
            body = {"name": name, "url": endpoint.url, "domains": "tests", "token": TOKEN, "state": "active"}
            enrolled = await found.http["router"].post("/v1/clients", json=body, headers=bearer(Scope.admin))
            enrolled.raise_for_status()
            endpoint.broken = html
        router = found.apps["router"].state.router
        for name in (OWN, RIVAL):
            await router.clients.pool.client(name).score([PROBE_ITEM], PROBE_IMAGES, 5)
        found.run = found.apps["control"].state.runs.create(make_spec(tmp_path, tmp_path / "prompts.jsonl", steps=10))
        await report(found.http["control"], redis, found.run)
        del found.http["control"].headers["Authorization"]
        await found.apps["control"].state.tokens.refresh()
        yield found
    endpoints.stop()


async def test_each_route_declares_access_and_admits_these_callers_alone(installation: Installation) -> None:
    checked = 0
    for service, route in installation.routes():
        access = access_of(route)
        assert access is not None, f"{service}: {route.path} declares no access: depend on require(...), or mark public"
        if isinstance(route, Mount):
            continue
        for method in sorted(route.methods - {"HEAD"}):
            for scope in (None, "unknown", *Scope):
                if method == "DELETE" and scope is Scope.client and access.own is not None:
                    continue  # comes last, since it ends the client
                status = await _status(installation, service, route, method, scope)
                wanted = _refusal(access, scope)
                given = (method, route.path, scope, status)
                assert status == wanted if wanted else status not in (401, 403), given
                assert status < 500 or status == 503 or service == "rollout", given
                checked += 1
    assert checked > 400
    ended = await installation.http["router"].delete(f"/v1/clients/{OWN}", headers=bearer(Scope.client))
    assert ended.status_code == 204


async def _status(installation: Installation, service: str, route: Any, method: str, scope: Scope | str | None) -> int:
    headers = {"Authorization": "Bearer nobody's"} if scope == "unknown" else bearer(scope)  # type: ignore[arg-type]
    path = installation.path(route, "nobody" if method == "DELETE" else OWN)
    if path.endswith("/events") and scope not in (None, "unknown") and _refusal(access_of(route), scope) is None:
        path = path.replace(installation.run, "no-such-run")  # an open stream has no end
    reply = await installation.http[service].request(method, path, headers=headers, json={})
    return reply.status_code


def _refusal(access: Access | None, scope: Scope | str | None) -> int | None:
    """Return the status with which a caller is refused, ``None`` for one that is admitted."""
    assert access is not None
    if access.scopes is None:
        return None
    if scope is None or scope == "unknown":
        return 401
    return None if scope in access.scopes else 403


async def test_scoring_and_credentials_are_for_these_scopes(installation: Installation) -> None:
    """The declarations themselves: what a mistake would hurt most."""
    for service, route in installation.routes():
        scopes = (access_of(route) or Access(None)).scopes
        if scopes is None:
            assert not route.path.startswith("/v1"), route.path
            continue
        if service == "router" and route.path in SCORING:
            assert scopes == {Scope.admin, Scope.service, Scope.scorer}
        else:
            assert Scope.scorer not in scopes or route.path == "/v1/about", route.path
        enrolling = service == "router" and route.path == "/v1/clients" and "POST" in route.methods
        assert Scope.enrolment not in scopes or enrolling or route.path == "/v1/about", route.path
        changing = bool(route.methods - {"GET", "HEAD"})
        assert not changing or Scope.viewer not in scopes, route.path
        assert not changing or Scope.client not in scopes or route.methods == {"DELETE"}, route.path


async def test_a_client_opens_nothing_by_the_name_of_another(installation: Installation) -> None:
    checked = 0
    for service, route in installation.routes():
        access = access_of(route)
        if access is not None and access.own is not None:
            for method in route.methods:
                path = installation.path(route, RIVAL)
                reply = await installation.http[service].request(method, path, headers=bearer(Scope.client))
                assert (reply.status_code, RIVAL in reply.text) == (403, False), path
                checked += 1
    assert checked == 5


def _redact(content: Any, path: list[str], mark: HiddenFrom | OwnRows, name: str) -> None:
    """Apply a mark to JSON: the reference for what ``visible`` does to models."""
    if isinstance(content, list):
        for item in content:
            _redact(item, path, mark, name)
    elif isinstance(content, dict) and path[0] not in content:
        for value in content.values():  # a map of models
            if isinstance(value, dict | list):
                _redact(value, path, mark, name)
    elif isinstance(content, dict) and len(path) > 1:
        _redact(content[path[0]], path[1:], mark, name)
    elif isinstance(content, dict) and content[path[0]] is not None:
        value = content[path[0]]
        if isinstance(mark, HiddenFrom):
            content[path[0]] = {kept: value[kept] for kept in mark.but if kept in value} if mark.but else None
        elif isinstance(value, dict):
            content[path[0]] = {client: row for client, row in value.items() if client == name}
        else:
            content[path[0]] = [row for row in value if row["client"] == name]


def _expected(content: Any, route: APIRoute, scope: Scope) -> Any:
    content = json.loads(json.dumps(content))
    if route.path == "/v1/runs/{run}/samples" and scope is Scope.client:
        content["samples"] = [s for s in content["samples"] if s["clients"][0]["client"] == OWN]
    if route.path == "/v1/clients" and scope is Scope.client:
        content = [line for line in content if line["client"]["name"] == OWN]
    if route.path == "/v1/audits/clients" and scope is Scope.client:
        content = [line for line in content if line["client"] == OWN]
    for path, mark in marks_of(route):
        if scope is Scope.client if isinstance(mark, OwnRows) else scope in mark.scopes:
            _redact(content, path.split("."), mark, OWN)
    return content


async def test_each_field_is_shown_to_the_scopes_that_may_see_it(installation: Installation) -> None:
    limited: set[str] = set()
    for service, route in installation.routes():
        access = access_of(route)
        if not isinstance(route, APIRoute) or "GET" not in route.methods or access is None or access.scopes is None:
            continue
        differing = ("/v1/about", "/metrics", "/v1/runs/{run}/events", "/v1/storage", "/v1/card")
        if service == "rollout" or route.path in differing:
            continue  # no engine; differ at each call or for each caller; has a test of its own
        http, path = installation.http[service], installation.path(route)
        whole = await http.get(path, headers=bearer(Scope.admin))
        for scope in sorted(access.scopes - {Scope.admin}):
            reply = await http.get(path, headers=bearer(scope))
            assert reply.status_code == whole.status_code, (path, scope)
            if whole.headers["content-type"].startswith("text/csv"):
                assert Scope.client not in access.scopes and reply.text == whole.text, "a file has no fields to hide"
            elif whole.status_code == 200:
                expected = _expected(whole.json(), route, scope)
                assert reply.json() == expected, (path, scope)
                if expected != whole.json():
                    limited.add(route.path)
    marked = {
        route.path
        for _, route in installation.routes()
        if isinstance(route, APIRoute) and "GET" in route.methods
        for _, mark in marks_of(route)
        if ((access_of(route) or Access(None)).scopes or set())
        & (mark.scopes if isinstance(mark, HiddenFrom) else {Scope.client})
    }
    rows_alone = {"/v1/audits/clients"}
    assert limited | {"/v1/about"} == marked | rows_alone, "each field with a limit was there to be hidden"


async def test_no_answer_to_a_client_or_an_enrolment_token_contains_anything_of_a_rival(
    installation: Installation,
) -> None:
    for scope in (Scope.client, Scope.enrolment):
        for service, route in installation.routes():
            access = access_of(route)
            if isinstance(route, Mount) or "GET" not in route.methods or access is None or access.scopes is None:
                continue
            reply = await installation.http[service].get(installation.path(route), headers=bearer(scope))
            assert RIVAL not in reply.text, (route.path, scope)
            assert RIVAL not in str(reply.headers), (route.path, scope)
    whole = await installation.http["control"].get(f"/v1/runs/{installation.run}", headers=bearer(Scope.admin))
    assert RIVAL in whole.text, "there is something to leak"


async def test_who_am_i_is_for_every_token_and_the_host_for_the_servers_own_people(installation: Installation) -> None:
    for service in ("control", "router", "reward"):
        for scope in Scope:
            found = (await installation.http[service].get("/v1/about", headers=bearer(scope))).json()
            assert found["caller"]["scope"] == scope
            assert (found["facts"] is not None) == (scope in (Scope.admin, Scope.service, Scope.viewer))


def test_a_route_without_declared_access_is_found() -> None:
    app = FastAPI(openapi_url=None)

    @app.get("/open")
    async def forgotten() -> None: ...

    @app.get("/public")
    @public
    async def declared() -> None: ...

    found = {route.path: access_of(route) for route in app.routes}  # type: ignore[attr-defined]
    assert found == {"/open": None, "/public": Access(None)}
    assert require(Scope.viewer).__dict__["access"].scopes == {Scope.admin, Scope.viewer}
