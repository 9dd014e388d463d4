"""Every service answers errors as problem+json, checks tokens and limits, and reports its health."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI
from mor_core import auth
from mor_core.auth import Principal, Scope, require
from mor_core.errors import Invalid, NotFound, Unavailable
from mor_core.images import decode
from mor_core.process import unread_variables
from mor_core.service import create_service, open_routes
from mor_core.settings import ControlCallerSettings, ServiceSettings, StreamSettings
from mor_core.wire import ScoreRequest
from pydantic import ValidationError

from tests.certificates import self_signed
from tests.trainer.kit import served

pytestmark = pytest.mark.anyio

ADMIN, VIEWER = auth.new_token(), auth.new_token()


def write_tokens(path: Path, **tokens: tuple[str, Scope]) -> None:
    rows = [{"name": n, "scope": s, "sha256": auth.hash_token(t)} for n, (t, s) in tokens.items()]
    path.write_text(json.dumps(rows))


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


async def broken() -> str | None:
    return "the engine has no weights yet"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    tokens = tmp_path / "tokens.json"
    write_tokens(tokens, ops=(ADMIN, Scope.admin), wall=(VIEWER, Scope.viewer))
    settings = ServiceSettings(tokens_file=tokens, max_request_bytes=2000)
    app = create_service("test", settings, lifespan, {"engine": broken}, version="1")

    @app.get("/missing")
    async def missing() -> None:
        raise NotFound("no run 'x'; GET /v1/runs lists them")

    @app.get("/busy")
    async def busy() -> None:
        raise Unavailable("loading", retry_after_s=2.2)

    @app.get("/broken")
    async def crash() -> None:
        raise RuntimeError("secret detail")

    @app.post("/score")
    async def score(request: ScoreRequest) -> int:
        return len(request.items)

    @app.get("/admin")
    async def admin(caller: Annotated[Principal, Depends(require())]) -> str:
        return caller.name

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


async def test_errors_are_problems_with_a_cure(client: httpx.AsyncClient) -> None:
    answer = await client.get("/missing")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "about:blank",
        "title": "Not found",
        "status": 404,
        "detail": "no run 'x'; GET /v1/runs lists them",
    }
    assert (await client.get("/nowhere")).json()["title"] == "Not Found"
    busy = await client.get("/busy")
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "3")


async def test_an_unexpected_error_names_its_type_and_nothing_more(client: httpx.AsyncClient) -> None:
    answer = await client.get("/broken")
    assert answer.status_code == 500
    assert "RuntimeError" in answer.text
    assert "secret detail" not in answer.text


async def test_an_unknown_field_is_named(client: httpx.AsyncClient) -> None:
    item = {"item_id": "1", "messages": [{"role": "user", "content": "q"}], "responses": ["a"]}
    assert (await client.post("/score", json={"items": [item]})).json() == 1
    answer = await client.post("/score", json={"items": [item | {"respones": []}]})
    assert answer.status_code == 422
    assert "items.0.respones: unknown field; did you mean 'responses'?" in answer.json()["detail"]


@pytest.mark.parametrize("declared", [True, False])
async def test_a_large_body_is_refused(client: httpx.AsyncClient, declared: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 100

    answer = await client.post("/score", content=b"x" * 3000 if declared else chunks())
    assert answer.status_code == 413


@pytest.mark.parametrize("declared", [True, False])
async def test_a_caller_gets_the_answer_to_a_body_that_is_not_read(tmp_path: Path, declared: bool) -> None:
    """Over a real socket, where bytes that nobody read would reset the connection before the answer is through."""
    tokens = tmp_path / "tokens.json"
    write_tokens(tokens, ops=(ADMIN, Scope.admin))
    app = create_service("test", ServiceSettings(tokens_file=tokens, max_request_bytes=2000), lifespan, {}, version="1")

    @app.post("/score", dependencies=[Depends(require())])
    async def score(request: ScoreRequest) -> int:
        return len(request.items)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    async with served(app) as url, httpx.AsyncClient(headers={"Authorization": f"Bearer {ADMIN}"}, timeout=30) as http:
        for _ in range(20):
            answer = await http.post(f"{url}/score", content=b"x" * (4 << 20) if declared else chunks())
            assert answer.status_code == 413
    assert "limited to 2000 bytes" in answer.json()["detail"]


async def test_tokens_have_scopes_and_can_be_rotated(client: httpx.AsyncClient, tmp_path: Path) -> None:
    async def get(token: str | None) -> httpx.Response:
        return await client.get("/admin", headers={"Authorization": f"Bearer {token}"} if token else {})

    assert (await get(None)).status_code == 401
    assert (await get("wrong")).json()["detail"].startswith("unknown bearer token")
    refused = await get(VIEWER)
    assert (refused.status_code, "scope viewer" in refused.text) == (403, True)
    assert (await get(ADMIN)).json() == "ops"
    fresh = auth.new_token()
    path = tmp_path / "tokens.json"
    write_tokens(path, ops=(fresh, Scope.admin))
    assert (await get(ADMIN)).status_code == 401
    assert (await get(fresh)).status_code == 200


async def test_readiness_names_what_is_missing(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).status_code == 200
    ready = await client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["missing"] == {"engine": "the engine has no weights yet"}


def test_a_bad_tokens_file_is_refused_at_start(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text('[{"name": "a", "scope": "root", "sha256": "1"}]')
    with pytest.raises(Invalid, match=r"JSON list of \{name, scope, sha256\}"):
        auth.TokenFile(path)


def test_misspelt_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOR_STREAM_BOUNDS", "3")
    monkeypatch.setenv("MOR_STREAM_BOUND", "3")
    monkeypatch.setenv("MOR_ZZZ", "3")
    assert unread_variables() == {
        "MOR_STREAM_BOUNDS": "did you mean MOR_STREAM_BOUND?",
        "MOR_ZZZ": "remove it, or correct its name",
    }


def test_images_are_bounded_before_they_are_decoded() -> None:
    with pytest.raises(Invalid, match="not a readable image"):
        decode(b"<html>")


def test_a_secret_may_be_a_file_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mor_redis_url").write_text("redis://file/0\n")
    monkeypatch.setenv("MOR_SECRETS_DIR", str(tmp_path))
    assert StreamSettings().redis_url.get_secret_value() == "redis://file/0"
    assert unread_variables() == {}
    monkeypatch.setenv("MOR_REDIS_URL", "redis://environment/0")
    assert StreamSettings().redis_url.get_secret_value() == "redis://environment/0"


_SERVE = """
import contextlib, pathlib, sys
from mor_core import process, service, settings

@contextlib.asynccontextmanager
async def lifespan(_):
    yield

chosen = settings.ServiceSettings.model_validate_json(sys.argv[1])
process.begin(chosen, "test")
service.serve(
    service.create_service("test", chosen, lifespan, {}, version="1"), chosen,
    port_file=pathlib.Path(sys.argv[2]),
)
"""


def test_https_is_served_with_the_given_certificate_and_trusted_by_its_authority(tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    for file, content in zip((certificate, key), self_signed(), strict=True):
        file.write_bytes(content)
    with pytest.raises(ValidationError, match="MOR_TLS_KEY_FILE"):
        ServiceSettings(tls_cert_file=certificate)
    settings = ServiceSettings(tls_cert_file=certificate, tls_key_file=key, shutdown_grace_s=1)
    place = tmp_path / "address"
    process = subprocess.Popen([sys.executable, "-c", _SERVE, settings.model_dump_json(), str(place)])
    try:
        deadline = time.monotonic() + 60
        while not place.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = place.read_text()
        assert address.startswith("https://")
        trusting = ControlCallerSettings(control_ca_file=certificate).control_tls()
        assert httpx.get(f"{address}/healthz", verify=trusting).is_success
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{address}/healthz", verify=ControlCallerSettings().control_tls())
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_a_service_without_tokens_knows_what_is_open() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    settings = ServiceSettings(metrics_port=9)
    app = create_service("test", settings, lifespan, {}, version="1")
    found = open_routes(app, settings)
    assert found == ["/docs", "/docs/{file}", "/healthz", "/metrics on port 9", "/openapi.json", "/readyz", "/startupz"]
