"""Clients' own tokens at run control: unknown ones cost nothing, and open streams end with their token."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_core import token_watch
from mor_core.auth import Principal, Scope, hash_token
from mor_core.run_status import Event
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.control import redaction
from pydantic import AnyHttpUrl, SecretStr
from redis.asyncio import Redis

from tests.router.conftest import eventually as holds
from tests.trainer.control import Worker, claim, create, eventually
from tests.trainer.kit import TOKENS, bearer, running, served

pytestmark = pytest.mark.anyio

PAGE = "page-token-of-a-client"


class RouterOfHashes(httpx.AsyncBaseTransport):
    """The router's answer to run control, with a count of the requests."""

    def __init__(self) -> None:
        self.requests = 0
        self.up = True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if not self.up:
            raise httpx.ConnectError("refused", request=request)
        assert request.url.path == "/v1/page-tokens"
        if request.headers["Authorization"] != f"Bearer {TOKENS['service']}":
            return httpx.Response(403, json={"detail": "scope service"})
        return httpx.Response(200, json=[{"client": "alpha", "sha256": hash_token(PAGE)}])


def with_router(settings: ControlSettings, token: str = TOKENS["service"]) -> ControlSettings:
    return settings.model_copy(update={"router_url": AnyHttpUrl("http://router"), "service_token": SecretStr(token)})


def sample_group(group_id: str, score: dict[str, Any], images: Sequence[str] = ()) -> dict[str, Any]:
    """A group with one score, as a worker reports it."""
    return {
        "group_id": group_id, "prompt_id": "p", "domain": None, "prompt": "Which?", "images": list(images),
        "weights_version": 1, "gate_version": 1, "fusion": "weighted", "responses": ["a"], "rewards": [1.0],
        "advantages": [0.5], "clients": [score],
    }  # fmt: skip


async def median_s(http: httpx.AsyncClient, tokens: list[str]) -> float:
    found = []
    for token in tokens:
        started = time.perf_counter()
        await http.get("/v1/workers", headers={"Authorization": f"Bearer {token}"})
        found.append(time.perf_counter() - started)
    return sorted(found)[len(found) // 2]


async def test_unknown_tokens_cost_no_request_to_the_router(settings: ControlSettings, redis: Redis) -> None:
    router = RouterOfHashes()
    app = create_app(with_router(settings), router)
    async with running(app) as http:
        await app.state.tokens.refresh()
        before, started = router.requests, time.monotonic()
        statuses = [
            (await http.get("/v1/about", headers={"Authorization": f"Bearer random-{number}"})).status_code
            for number in range(200)
        ]
        assert statuses == [401] * 200
        assert router.requests - before <= 1 + (time.monotonic() - started) / 2, "the periodic fetch alone"
        own = await http.get("/v1/about", headers={"Authorization": f"Bearer {PAGE}"})
        assert own.json()["caller"] == {"name": "alpha", "scope": "client"}
        # /v1/workers refuses both, one as unknown and one for its scope, so that only the look-up differs
        unknown, known = await median_s(http, [f"r{n}" for n in range(60)]), await median_s(http, [PAGE] * 60)
        assert 0.3 < unknown / known < 3


async def test_an_outage_of_the_router_is_no_refusal_and_a_missing_token_is_named(
    settings: ControlSettings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = RouterOfHashes()
    app = create_app(with_router(settings), router)
    async with running(app) as http:
        await app.state.tokens.refresh()
        router.up = False
        own = {"Authorization": f"Bearer {PAGE}"}
        assert (await http.get("/v1/about", headers=own)).status_code == 200, "the last hashes stay in use"
        monkeypatch.setattr("mor_trainer.control.client_tokens._KEPT_S", 0.0)
        for token in (PAGE, "random"):
            reply = await http.get("/v1/about", headers={"Authorization": f"Bearer {token}"})
            assert (reply.status_code, "retry-after" in reply.headers) == (503, True), "both alike"
        assert (await http.get("/v1/about", headers=bearer("viewer"))).status_code == 200
    refused = create_app(with_router(settings, "of another scope"), RouterOfHashes())
    with pytest.raises(Exception, match="set MOR_SERVICE_TOKEN to a token of scope service"):
        await refused.state.tokens.refresh()


async def test_an_event_stream_ends_with_its_token(
    settings: ControlSettings, spec: RunSpec, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_watch, "_CHECK_S", 0.3)
    assert settings.tokens_file is not None
    rows = json.loads(settings.tokens_file.read_text())
    tokens = tmp_path / "own.json"
    tokens.write_text(json.dumps(rows))
    app = create_app(settings.model_copy(update={"tokens_file": tokens}))
    async with served(app) as address, httpx.AsyncClient(base_url=address, timeout=20) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        async with http.stream("GET", f"/v1/runs/{run}/events", headers=bearer("viewer")) as stream:
            lines = stream.aiter_lines()
            assert (await anext(lines)).startswith(": ping")
            assert app.state.watchers.readers.total == 1
            tokens.write_text(json.dumps([row for row in rows if row["scope"] != "viewer"]))
            removed_at = time.monotonic()
            async for _ in lines:
                pass
            assert time.monotonic() - removed_at < 5
        assert (await http.get(f"/v1/runs/{run}/events", headers=bearer("viewer"))).status_code == 401

        async def closed() -> bool:
            return app.state.watchers.readers.total == 0

        await holds(closed)


async def test_a_viewer_follows_events_without_the_clients_errors(
    settings: ControlSettings, spec: RunSpec, redis: Redis
) -> None:
    async with served(create_app(settings)) as address, httpx.AsyncClient(base_url=address, timeout=20) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        worker = Worker(redis, run, (await claim(http))["attempt"])
        score = {"client": "alpha", "status": "error", "detail": "cannot reach 10.0.0.7", "weight": 0.0}
        groups = [sample_group("g", score)]
        await worker.report("samples", 1, {"groups": groups, "thumbnails": {}})
        await worker.step(1, 0.5)
        await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 1)
        shown = {}
        for scope in ("admin", "viewer"):
            headers = {**bearer(scope), "Last-Event-ID": f"{run}/0"}
            async with http.stream("GET", f"/v1/runs/{run}/events", headers=headers) as stream:
                async for line in stream.aiter_lines():
                    if line.startswith("data:") and '"samples"' in line:
                        shown[scope] = json.loads(line.removeprefix("data:"))["data"]["groups"]
                        break
        assert shown["admin"] == groups
        assert shown["viewer"] == [{**groups[0], "clients": [{**score, "detail": None}]}]


@pytest.mark.parametrize("groups", [5, ["x"], [{"clients": 5}], [{"clients": ["x"]}], [{}], None])
def test_samples_that_do_not_fit_are_empty_for_a_viewer(groups: Any) -> None:
    stored = Event(id=1, kind="samples", step=1, at=1.0, data={"groups": groups})
    assert redaction.event(stored, Principal(name="v", scope=Scope.viewer)).data == {}


@asynccontextmanager
async def claimed_run(
    settings: ControlSettings, spec: RunSpec, redis: Redis, tmp_path: Path
) -> AsyncIterator[tuple[httpx.AsyncClient, str, Worker]]:
    """Serve run control for the tokens ``ops`` and ``alpha``, a client's, with a run that a worker has claimed."""
    tokens = tmp_path / "own.json"
    holders = {"ops": "admin", "alpha": "client"}
    tokens.write_text(
        json.dumps([{"name": n, "scope": scope, "sha256": hash_token(n)} for n, scope in holders.items()])
    )
    async with running(create_app(settings.model_copy(update={"tokens_file": tokens}))) as http:
        http.headers.update({"Authorization": "Bearer ops"})
        run = str((await http.post("/v1/runs", json=spec.model_dump(mode="json"))).json()["id"])
        attempt = (await http.post("/v1/runs/claim", json={"worker": "w"})).json()["attempt"]
        yield http, run, Worker(redis, run, attempt)


async def test_a_client_sees_no_group_and_no_picture_that_was_not_sent_to_it(
    settings: ControlSettings, spec: RunSpec, redis: Redis, tmp_path: Path
) -> None:
    async with claimed_run(settings, spec, redis, tmp_path) as (http, run, worker):
        scored = {"raw": [0.5]}
        given: dict[str, dict[str, Any]] = {
            "ok": {"status": "ok", **scored},
            "shadow": {"status": "shadow", **scored},
            "timeout": {"status": "timeout"},
            "not asked": {"status": "not_asked"},
            "circuit open": {"status": "circuit_open"},
            "shadow without an answer": {"status": "shadow"},  # perhaps it was never called
        }
        groups = [
            sample_group(name, {"client": "alpha", "weight": 0.0, **score}, images=[f"{index}" * 64])
            for index, (name, score) in enumerate(given.items())
        ]
        thumbnails = {group["images"][0]: "AAAA" for group in groups}
        await worker.report("samples", 1, {"groups": groups, "thumbnails": thumbnails})
        await worker.step(1, 0.5)
        await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 1)
        own = {"Authorization": "Bearer alpha"}
        shown = (await http.get(f"/v1/runs/{run}/samples", headers=own)).json()["samples"]
        assert sorted(group["group_id"] for group in shown) == ["ok", "shadow", "timeout"]
        found = [(await http.get(f"/v1/runs/{run}/images/{digest}", headers=own)).status_code for digest in thumbnails]
        assert found == [200, 200, 200, 404, 404, 404]
        assert (await http.get(f"/v1/runs/{run}/images/{'3' * 64}")).status_code == 200, "administrators see all"


async def test_a_clients_requests_for_pictures_do_not_stop_run_control(
    settings: ControlSettings, spec: RunSpec, redis: Redis, tmp_path: Path
) -> None:
    """Each of them parsed all kept groups on the event loop: 80 at a time stopped everything else until they ended."""
    async with claimed_run(settings, spec, redis, tmp_path) as (http, run, worker):
        group = sample_group("g", {"client": "alpha", "status": "ok", "weight": 0.0}) | {"responses": ["x" * 2000] * 16}
        for step in range(1, 9):
            pictures = [f"{step}{index:063x}" for index in range(20)]
            groups = [{**group, "images": [picture]} for picture in pictures]
            await worker.report("samples", step, {"groups": groups, "thumbnails": dict.fromkeys(pictures, "AAAA")})
        await worker.step(8, 0.5)
        await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 8)
        own = {"Authorization": "Bearer alpha"}
        requests = [http.get(f"/v1/runs/{run}/images/{picture}", headers=own) for picture in 4 * pictures]
        answering = asyncio.gather(*requests)
        pauses = [0.0]
        while not answering.done():
            began = time.thread_time()  # of the event loop's thread: other processes do not count
            await asyncio.sleep(0.001)
            pauses.append(time.thread_time() - began)
        assert {answer.status_code for answer in await answering} == {200}
        assert max(pauses) < 0.3
