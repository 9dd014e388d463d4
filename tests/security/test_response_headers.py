"""Every response of every service keeps a browser from running, framing, leaking or storing it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from mor_core import problems
from mor_core.service import create_service
from mor_core.settings import ServiceSettings

from tests.security.headers import check_headers
from tests.security.served_apps import SERVICES, ServedApp

_PARAMETER = re.compile(r"{(\w+)}")
_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")
_PAGES = ("/docs", "/docs/start.js", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/openapi.json")
_ELSEWHERE = ("/nowhere", "/docs/nothing", "/docs/../openapi.json", "/redoc", "/docs/oauth2-redirect", "/%ff")


def paths(served: ServedApp) -> list[str]:
    """Return every path that the app routes, with names of things that it has, and some that it does not."""
    found = [getattr(route, "path", "") for route in served.app.routes]
    filled = [_PARAMETER.sub(lambda name: str(served.known.get(name.group(1), "x")), path) for path in found]
    return sorted({*filled, *_PAGES, *_ELSEWHERE} - {"/static"})


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("scope", [None, "viewer"])
def test_every_route_answers_with_the_headers(
    served_apps: dict[str, ServedApp], service: str, scope: str | None
) -> None:
    served = served_apps[service]
    statuses = set()
    with served.http(scope) as http:
        for path in paths(served):
            for method in _METHODS:
                with http.stream(method, path) as reply:
                    statuses.add(reply.status_code)
                    check_headers(reply)
    assert {200, 404, 405, 403 if scope else 401} <= statuses


@pytest.mark.parametrize("service", SERVICES)
def test_no_response_leads_elsewhere(served_apps: dict[str, ServedApp], service: str) -> None:
    """Behind an ingress that ends TLS, a redirect would lead to http, where a caller repeats its token and body."""
    served = served_apps[service]
    with served.http(None) as http:
        for path in ("/docs/", "/healthz/", "/v1/about/", "/v1/runs/", "/v1/clients/", "/static"):
            for method in ("GET", "POST"):
                reply = http.request(method, path, headers={"Host": "elsewhere.example"}, follow_redirects=False)
                assert "location" not in reply.headers, path
                assert reply.status_code in (401, 404, 405), path


def test_pages_of_the_dashboard_and_its_files_have_the_headers(served_apps: dict[str, ServedApp]) -> None:
    with served_apps["trainer"].http(None) as http:
        for path in ("/", "/static/app.js", "/static/style.css", "/static/nothing", "/static/..%2fapp.py"):
            reply = http.get(path)
            check_headers(reply)
            again = http.get(path, headers={"If-None-Match": reply.headers.get("etag", '"x"')})
            assert again.status_code in (304, reply.status_code)


def test_a_stream_and_an_unchanged_answer_have_the_headers(served_apps: dict[str, ServedApp]) -> None:
    served = served_apps["trainer"]
    with served.http("viewer") as http:
        with http.stream("GET", f"/v1/runs/{served.known['run']}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            check_headers(stream)
        first = http.get(f"/v1/runs/{served.known['run']}")
        check_headers(first)
        again = http.get(f"/v1/runs/{served.known['run']}", headers={"If-None-Match": first.headers["etag"]})
        assert again.status_code == 304
        check_headers(again)


def test_unexpected_errors_and_refused_bodies_have_the_headers() -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    app = create_service("test", ServiceSettings(max_request_bytes=10), lifespan, {}, version="1")

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("unforeseen")

    @app.post("/body")
    async def body(content: dict[str, str]) -> int:
        return len(content)

    http = TestClient(app, raise_server_exceptions=False)
    for reply, status in ((http.get("/broken"), 500), (http.post("/body", content=b"x" * 11), 413)):
        assert reply.status_code == status
        check_headers(reply)


def test_a_refusal_with_half_a_character_can_be_sent() -> None:
    assert "\\\\ud800" in bytes(problems.problem(422, "Invalid input", "no file '\ud800'").body).decode()
