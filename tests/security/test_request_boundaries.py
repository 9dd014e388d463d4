"""No bytes of a request make a service answer 5xx, and every refusal is a problem with the headers of a refusal."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.security import nasty
from tests.security.headers import check_headers
from tests.security.served_apps import SERVICES, SERVICES_DRAW, ServedApp

_ANCHOR = {"id": "a", "prompt": "What is it?", "chosen": "a", "rejected": "b", "images": ["data:image/png;base64,eA=="],
           "domain": "tests"}  # fmt: skip
_PARAMETER = re.compile(r"{\w+}")


def routes(served: ServedApp) -> list[tuple[str, str, dict[str, Any]]]:
    found = served.openapi["paths"].items()
    return [(method.upper(), path, operation) for path, methods in found for method, operation in methods.items()]


def valid_bodies(served: ServedApp, operation: dict[str, Any]) -> list[Any]:
    """Return the documented examples of an operation's JSON body, with known names put in."""
    content = operation.get("requestBody", {}).get("content", {})
    if "application/x-ndjson" in content:
        return [_ANCHOR]
    content = content.get("application/json", {})
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    schemas = served.openapi["components"]["schemas"]
    return [{**example, **served.bodies} if served.bodies.keys() <= example.keys() else example
            for example in schemas.get(name, {}).get("examples", [])]  # fmt: skip


@pytest.mark.filterwarnings(SERVICES_DRAW)
@pytest.mark.parametrize("service", SERVICES)
def test_no_bytes_break_a_service(served_apps: dict[str, ServedApp], service: str, long_profile: bool) -> None:
    served = served_apps[service]
    known = [route for route in routes(served) if not route[1].endswith("/events")]

    @settings(max_examples=3000 if long_profile else 120, deadline=None, database=None, derandomize=not long_profile,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(data=st.data())
    def one(data: st.DataObject) -> None:
        method, path, operation = data.draw(st.sampled_from(known))
        names = {name: str(value) for name, value in served.known.items()}

        def place(found: re.Match[str]) -> str:
            usual = names.get(found.group()[1:-1], "x")
            return data.draw(st.sampled_from((usual, usual, *nasty.PATHS)))

        target = _PARAMETER.sub(place, path) + "?" + data.draw(st.sampled_from(nasty.QUERIES))
        body = data.draw(nasty.bodies(valid_bodies(served, operation))) if "requestBody" in operation else b""
        kind = next(iter(operation.get("requestBody", {}).get("content", {"application/json": {}})))
        sent = {"content-type": kind.encode(), **dict(data.draw(nasty.headers))}
        url = httpx.URL(served.address).copy_with(raw_path=target.rstrip("?").encode())
        check_reply(http.request(method, url, content=body, headers=sent))

    with served.http() as http:
        one()


def check_reply(reply: httpx.Response) -> None:
    told = f"{reply.request.method} {reply.request.url}: {reply.status_code} {reply.text[:300]}"
    assert reply.status_code < 500 or (reply.status_code == 503 and "retry-after" in reply.headers), told
    if reply.status_code >= 400:
        assert reply.headers["content-type"] == "application/problem+json", told
        assert set(reply.json()) >= {"title", "status", "detail"}, told
    check_headers(reply)


@pytest.mark.parametrize("cursor", ["\xb2", "9" * 40, "-1", "", "1e3", "\xff", "../1", "0x1"])
def test_no_cursor_breaks_a_stream(served_apps: dict[str, ServedApp], cursor: str) -> None:
    served = served_apps["trainer"]
    run = served.known["run"]
    sent = {"Last-Event-ID": f"{run}/{cursor}".encode("latin-1")}
    with served.http() as http, http.stream("GET", f"/v1/runs/{run}/events", headers=sent) as reply:
        reply.read()
        assert reply.status_code == 422
        check_reply(reply)


def test_no_number_in_a_spec_breaks_run_control(served_apps: dict[str, ServedApp]) -> None:
    served = served_apps["trainer"]
    json_type = {"Content-Type": "application/json"}
    with served.http() as http:
        spec = http.get(f"/v1/runs/{served.known['run']}/spec").json()
        for document, key in nasty.holes(spec):
            usual = document[key]
            if isinstance(usual, bool) or not isinstance(usual, int | float):
                continue
            for number in nasty.NUMBERS:
                document[key] = number
                reply = http.post("/v1/runs", content=json.dumps(spec), headers=json_type)
                assert reply.status_code in (202, 422), (key, number, reply.text)
            document[key] = usual
        assert http.get("/v1/runs").status_code == 200
