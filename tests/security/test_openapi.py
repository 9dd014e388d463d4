"""No request that follows, or nearly follows, a service's OpenAPI document gets a 5xx or an undocumented answer.

schemathesis makes the requests and reads the answers by the document: status, content type and shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.router.endpoints import TOKEN
from tests.security.served_apps import SERVICES, SERVICES_DRAW, TOKENS, ServedApp

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
WAITING = {503}
"""Documented answer of a service that is busy or waits for a part; no fault where a route declares it."""
AT_ONCE = {"wait_s": 0}
"""Parameters by which a route waits for requests of others, which do not come here."""
_EVENTS = "text/event-stream"
_PARTS = ("method", "url", "headers", "params", "cookies", "json", "data", "files")


def operations(served: ServedApp) -> Iterator[Any]:
    """Yield all operations: those that remove things last."""
    schema = schemathesis.openapi.from_dict(served.openapi)
    found = [result.ok() for result in schema.get_all_operations()]
    yield from sorted(found, key=lambda operation: operation.method.upper() == "DELETE")


def send(http: httpx.Client, case: Any) -> httpx.Response:
    """Send a request; of a stream of events, read the head only."""
    sent = case.as_transport_kwargs(base_url=str(http.base_url))
    sent["headers"] = {name: value for name, value in sent["headers"].items() if name.lower() != "authorization"}
    request = requests.Request(**{name: sent[name] for name in _PARTS if name in sent}).prepare()
    headers = {**request.headers, **http.headers}
    with http.stream(request.method, request.url, headers=headers, content=request.body) as reply:
        if reply.headers.get("content-type", "").startswith(_EVENTS):
            reply._content = b""
        else:
            reply.read()
        return reply


@pytest.mark.filterwarnings(SERVICES_DRAW)
@pytest.mark.parametrize("service", SERVICES)
def test_every_answer_is_documented(served_apps: dict[str, ServedApp], service: str, long_profile: bool) -> None:
    """Long: every scope on every operation. Short: a few requests to each, mostly as ``admin``, who gets furthest."""
    served = served_apps[service]
    with ExitStack() as stack:
        callers = {scope: stack.enter_context(served.http(scope)) for scope in TOKENS}
        for operation in operations(served):
            modes = {
                GenerationMode.POSITIVE,
                GenerationMode.NEGATIVE if takes_input(operation) else GenerationMode.POSITIVE,
            }
            for mode in modes:
                cases = operation.as_strategy(generation_mode=mode)
                if not long_profile:
                    try_operation(served, cases, st.sampled_from((callers["admin"], *callers.values())), 2)
                for http in callers.values() if long_profile else ():
                    try_operation(served, cases, st.just(http), 8)


def takes_input(operation: Any) -> bool:
    return bool(operation.body) or any(operation.iter_parameters())


def try_operation(
    served: ServedApp, cases: st.SearchStrategy[Any], callers: st.SearchStrategy[httpx.Client], examples: int
) -> None:
    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=cases, http=callers, familiar=st.booleans())
    def one(case: Any, http: httpx.Client, familiar: bool) -> None:
        if familiar:
            case.path_parameters = {**(case.path_parameters or {}), **_common(served.known, case.path_parameters)}
            if isinstance(case.body, dict):
                case.body = {**case.body, **_common(served.bodies, case.body)}
        asked = {parameter.name: None for parameter in case.operation.iter_parameters()}
        case.query = {**(case.query or {}), **_common(AT_ONCE, asked)}
        reply = send(http, case)
        excluded = [not_a_server_error] if reply.status_code in WAITING else []
        case.validate_response(reply, checks=CHECKS, excluded_checks=excluded)

    one()


def _common(values: Mapping[str, Any], document: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in (document or {})}


def test_refusals_that_follow_from_earlier_requests_are_documented(served_apps: dict[str, ServedApp]) -> None:
    served = served_apps["router"]
    refusals = []
    with served.http("enrolment") as http:
        body = {"name": "nobody", "url": "http://127.0.0.1:1", "domains": "tests", "token": TOKEN}
        replies = (http.post("/v1/clients", json=body) for _ in range(100))
        refusals.append((next(reply for reply in replies if reply.status_code != 422), "/v1/clients", 429))
    with served.http() as http:
        http.post("/v1/objectives", json={"name": "checked", "text": "labelled by a service"}).raise_for_status()
        labeller = {"kind": "checker", **served.bodies}
        http.put("/v1/objectives/checked/labeller", json=labeller).raise_for_status()
        following = http.get("/v1/objectives/checked/audits/next")
        refusals.append((following, "/v1/objectives/{name}/audits/next", 409))
    for reply, path, status in refusals:
        assert reply.status_code == status, reply.text
        operation = served.openapi["paths"][path][reply.request.method.lower()]
        assert str(status) in operation["responses"]
