"""No request that follows, or nearly follows, a service's OpenAPI document gets a 5xx or an undocumented answer.

schemathesis makes the requests and reads the answers by the document: status, content type and shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
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

from tests.security.served_apps import SERVICES, TOKENS, ServedApp, bearer

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
WAITING = {503}
"""Documented answer of a service that is busy or waits for a part; no fault where a route declares it."""
_EVENTS = "text/event-stream"
_LONGEST_S = 30.0


def operations(served: ServedApp) -> Iterator[Any]:
    """Yield all operations: those that remove things last."""
    schema = schemathesis.openapi.from_dict(served.openapi)
    found = [result.ok() for result in schema.get_all_operations()]
    yield from sorted(found, key=lambda operation: operation.method.upper() == "DELETE")


def answer(served: ServedApp, case: Any, scope: str) -> httpx.Response:
    """Send a request; of a stream of events, read the beginning."""
    sent = case.as_transport_kwargs(base_url=served.address)
    headers = {name: value for name, value in sent.pop("headers").items() if name.lower() != "authorization"}
    headers |= bearer(scope)
    import requests

    prepared = requests.Request(headers=headers, **{k: v for k, v in sent.items() if k in ("method", "url", "cookies", "params", "json", "data", "files")}).prepare()
    with httpx.Client(timeout=_LONGEST_S) as http, http.stream(
        prepared.method, prepared.url, headers=dict(prepared.headers), content=prepared.body
    ) as reply:
        if reply.headers.get("content-type", "").startswith(_EVENTS):
            reply._content = b""
            return reply
        reply.read()
        return reply


@pytest.mark.parametrize("service", SERVICES)
def test_every_answer_is_documented(served_apps: dict[str, ServedApp], service: str, long_profile: bool) -> None:
    served = served_apps[service]
    examples = 40 if long_profile else 3
    for operation in operations(served):
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            for scope in TOKENS if long_profile else ("admin", "service"):
                _try(served, operation, mode, scope, examples)


def _try(served: ServedApp, operation: Any, mode: GenerationMode, scope: str, examples: int) -> None:
    cases = operation.as_strategy(generation_mode=mode)

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=cases, known=st.booleans())
    def one(case: Any, known: bool) -> None:
        if known:
            for name, value in served.known.items():
                if name in (case.path_parameters or {}):
                    case.path_parameters[name] = value
        reply = answer(served, case, scope)
        excluded = [not_a_server_error] if reply.status_code in WAITING else []
        case.validate_response(reply, checks=CHECKS, excluded_checks=excluded)

    one()
