"""``mor-reward conformance``: the real service passes; each kind of violation is found by its own check."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from mor_core.errors import Unavailable
from mor_reward import cli
from mor_reward.app import create_app
from mor_reward.config import RewardSettings
from mor_reward.conformance import CheckResult, run_checks
from mor_reward.conformance.checks import CHECKS
from mor_reward.conformance.endpoint import Endpoint
from typer.testing import CliRunner

from tests.reward.served import TOKEN, function_settings

Change = Callable[[httpx.Request, httpx.Response], httpx.Response]


@pytest.fixture
def check_service(settings: RewardSettings, tmp_path: Path) -> Iterator[Callable[..., dict[str, CheckResult]]]:
    """Check a real service whose responses pass through ``change``."""
    small = {"max_items": 2, "max_responses": 4, "max_request_bytes": 1 << 20, "max_image_bytes": 100_000}
    served = function_settings(settings, tmp_path, "return [len(r) / 50 for r in responses]", **small)
    with TestClient(create_app(served), raise_server_exceptions=False) as service:

        def results(change: Change = lambda _, response: response) -> dict[str, CheckResult]:
            def handle(request: httpx.Request) -> httpx.Response:
                answer = service.request(
                    request.method, request.url.path, content=request.read(), headers=dict(request.headers)
                )
                return change(
                    request, httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
                )

            endpoint = Endpoint("http://reward", TOKEN, timeout_s=5, transport=httpx.MockTransport(handle))
            return {result.check: result for result in run_checks(endpoint)}

        yield results


def test_the_real_service_keeps_every_clause(check_service: Callable[..., dict[str, CheckResult]]) -> None:
    assert {name: result.outcome for name, result in check_service().items()} == dict.fromkeys(CHECKS, "kept")


def is_score(request: httpx.Request) -> bool:
    return request.url.path == "/v1/score"


def document(response: httpx.Response, change: Callable[[dict[str, Any]], None]) -> httpx.Response:
    """Return the response with its JSON changed in place."""
    body = response.json()
    change(body)
    return httpx.Response(response.status_code, content=json.dumps(body), headers={"content-type": "application/json"})


def every_score(change: Callable[[list[float]], list[float]]) -> Change:
    def apply(body: dict[str, Any]) -> None:
        for item in body["items"]:
            item["scores"] = item["scores"] and change(item["scores"])

    return lambda request, response: (
        document(response, apply) if is_score(request) and response.status_code == 200 else response
    )


def instead(of: int, status: int) -> Change:
    """Replace status ``of`` by ``status``."""

    def apply(_: httpx.Request, response: httpx.Response) -> httpx.Response:
        return httpx.Response(status, json={}) if response.status_code == of else response

    return apply


def without_limits(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    def forget(body: dict[str, Any]) -> None:
        del body["limits"]

    return document(response, forget) if request.url.path == "/v1/card" and response.is_success else response


def closed_health(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    return httpx.Response(403) if request.url.path == "/readyz" else response


def forgets_pictures(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    if not is_score(request) or response.status_code != 200:
        return response
    named = request.read().decode()
    body = json.loads(named)
    wanted = {part["image_url"]["url"][7:] for item in body["items"] for message in item["messages"]
              for part in message["content"] if isinstance(part, dict) and part["type"] == "image_url"}  # fmt: skip
    missing = sorted(wanted - set(body["images"]))
    return httpx.Response(409, json={"missing_images": missing}) if missing else response


def by_place() -> Change:
    return every_score(lambda scores: [score + place for place, score in enumerate(scores)])


def drifting() -> Change:
    count = itertools.count()
    return every_score(lambda scores: [score + next(count) for score in scores])


def by_company(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    if not is_score(request) or response.status_code != 200:
        return response
    return every_score(lambda scores: [score * len(response.json()["items"]) * 3 for score in scores])(
        request, response
    )


def plain_errors(_: httpx.Request, response: httpx.Response) -> httpx.Response:
    return response if response.status_code != 401 else httpx.Response(401, text="who are you?")


def whole_request_for_an_image(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    return httpx.Response(413) if is_score(request) and len(request.read()) > 100_000 else response


def late(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    return httpx.Response(503) if request.headers.get("x-mor-deadline-ms") == "0" else response


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (without_limits, "card"),
        (closed_health, "health"),
        (instead(401, 200), "token"),
        (plain_errors, "token"),
        (every_score(lambda scores: scores[:-1]), "scores"),
        (every_score(lambda scores: [float("nan") for _ in scores]), "scores"),
        (drifting(), "deterministic"),
        (by_place(), "order"),
        (by_company, "batches"),
        (forgets_pictures, "images"),
        (instead(409, 422), "images"),
        (instead(422, 200), "fields"),
        (instead(422, 500), "image-hashes"),
        (instead(413, 200), "item-limit"),
        (instead(413, 422), "response-limit"),
        (instead(413, 500), "byte-limit"),
        (whole_request_for_an_image, "image-limit"),
        (late, "deadline"),
    ],
)
def test_a_broken_clause_is_found(
    change: Change, broken: str, check_service: Callable[..., dict[str, CheckResult]]
) -> None:
    result = check_service(change)[broken]
    assert result.outcome == "broken"
    assert result.detail


def test_an_unreachable_address_is_one_clear_error() -> None:
    endpoint = Endpoint("http://127.0.0.1:9", TOKEN, timeout_s=2)
    with pytest.raises(
        Unavailable, match=r"http://127\.0\.0\.1:9 cannot be reached .* check that the service runs there"
    ):
        next(run_checks(endpoint))


def test_the_command_reports_an_unreachable_address() -> None:
    result = CliRunner().invoke(cli.app, ["conformance", "http://127.0.0.1:9", "--json"])
    assert result.exit_code == 1
    assert "cannot be reached" in result.stderr
