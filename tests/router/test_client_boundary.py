"""Whatever a client sends harms that client only."""

from __future__ import annotations

import contextlib
import json
import math
import time
from typing import Any

import httpx
import pytest
from fastapi.responses import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mor_core.wire import LARGEST_SCORE, Message, ModelRef, ScoreItem
from mor_router.clients.http import _retry_after
from mor_router.clients.responses import ClientFailure, parse_response

from tests.router.conftest import TOKENS, Start
from tests.router.endpoints import Endpoints, python_json
from tests.router.test_scoring import line, two

pytestmark = pytest.mark.anyio

ITEMS = [
    ScoreItem.model_validate({"item_id": name, "messages": [{"role": "user", "content": "?"}], "responses": ["a", "b"]})
    for name in ("x", "y")
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANY_JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
NUMBERS = st.sampled_from(
    [0, 1.5, True, "1.5", "1.7e308", 1e308, -1e10, 10**400, float("nan"), float("inf"), None, [1.0], {"a": 1}]
)
SENT = "an item that was sent"


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    """Draw something near a ``ScoreResponse``; ``SENT`` stands for the id of an item that was sent."""
    texts = st.sampled_from(["m", "", "v" * 60_000, "\x1b[2J", "\u202e", "😀"])
    items = st.fixed_dictionaries(
        {},
        optional={
            "item_id": st.sampled_from([SENT, SENT, SENT, [], {}, None, 1, 1.0, True, "other", "i" * 5000]),
            "status": st.sampled_from(["ok", "ok", "ok", "unscorable", "error", "fine", 0, None]),
            "scores": st.lists(NUMBERS, max_size=4) | st.just([1.0, 2.0]) | NUMBERS,
            "detail": SCALARS | st.just("d" * 60_000) | st.just(["detail"]),
            "more": SCALARS,
        },
    )
    models = st.fixed_dictionaries({}, optional={"name": texts | SCALARS, "version": texts | SCALARS})
    found = draw(
        st.fixed_dictionaries(
            {"model": models | ANY_JSON, "items": st.lists(items, max_size=3) | ANY_JSON}, optional={"more": ANY_JSON}
        )
    )
    assert isinstance(found, dict)
    return found


def named(answer: dict[str, Any], item_id: str) -> dict[str, Any]:
    """Put the id of a sent item where the drawn answer has ``SENT``."""
    if not isinstance(answer["items"], list):
        return answer
    return {
        **answer,
        "items": [
            {**item, "item_id": item_id} if isinstance(item, dict) and item.get("item_id") == SENT else item
            for item in answer["items"]
        ],
    }


def check(body: bytes) -> None:
    try:
        found = parse_response(body, ITEMS)
    except ClientFailure as failure:
        assert len(str(failure)) < 2000
        return
    assert set(found) == {"x", "y"}
    for response in found.values():
        assert len(response.detail or "") <= 500
        assert response.model is None or len(response.model.name + response.model.version) <= 400
        assert (response.status == "ok") == (response.scores is not None)
        if response.scores is not None:
            assert len(response.scores) == 2
            assert all(type(score) is float and abs(score) <= LARGEST_SCORE for score in response.scores)


@given(body=st.binary(max_size=200) | ANY_JSON.map(python_json))
@settings(deadline=None)
def test_any_bytes_are_a_failure_or_responses(body: bytes) -> None:
    check(body)


@given(answer=answers())
@settings(max_examples=500, deadline=None)
def test_any_answer_is_a_failure_or_responses(answer: dict[str, Any]) -> None:
    check(python_json(named(answer, "x")))


@pytest.mark.parametrize("scores", [["1.7e308", 1.0], [True, 1.0], ["1.5", "2.5"], [1e10, 0.0], [-1e308, 0.0]])
def test_scores_are_numbers_within_bounds(scores: list[Any]) -> None:
    items = [{"item_id": "x", "status": "ok", "scores": scores}]
    found = parse_response(python_json({"model": {"name": "m", "version": "1"}, "items": items}), ITEMS)
    assert found["x"].status == "error"
    assert found["x"].scores is None


def test_an_integer_is_a_score() -> None:
    items = [{"item_id": "x", "status": "ok", "scores": [1, 2]}]
    found = parse_response(python_json({"model": {"name": "m", "version": "1"}, "items": items}), ITEMS)
    assert found["x"].scores == (1.0, 2.0)


@given(value=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
@settings(deadline=None)
def test_any_retry_after_is_a_bounded_pause(value: str) -> None:
    check_pause(value)


@pytest.mark.parametrize(
    "value", ["nan", "-inf", "1e400", "-1", "²", "Mon, 01 Jan 2029 00:00:00 -0000", "Fri, 31 Dec 9999 23:59:59 -2359"]
)
def test_a_strange_retry_after_is_a_bounded_pause(value: str) -> None:
    check_pause(value)


def check_pause(value: str) -> None:
    pause = _retry_after(httpx.Response(429, headers={"Retry-After": value.encode("latin-1")}))
    assert pause is None or (math.isfinite(pause) and 0 <= pause <= 3600)


@given(
    answer=answers() | st.binary(max_size=200),
    status=st.sampled_from([200, 200, 200, 200, 409, 413, 429, 500, 503, 302, 401]),
    kind=st.sampled_from(["application/json", "application/json", "text/html", "application/problem+json", "x" * 5000]),
    retry_after=st.sampled_from(["0", "nan", "Mon, 01 Jan 2029 00:00:00 -0000", "²"]),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_no_answer_of_a_client_changes_another_clients_or_fails_the_group(
    shared: tuple[Any, Any], answer: Any, status: int, kind: str, retry_after: str
) -> None:
    api, bad = shared

    def broken(body: dict[str, Any]) -> Response:
        content = answer if isinstance(answer, bytes) else python_json(named(answer, body["items"][0]["item_id"]))
        headers = {"Content-Type": kind, "Retry-After": retry_after}
        return Response(content, status, headers)

    bad.broken = broken
    item = {"item_id": "g", "messages": [{"role": "user", "content": "?"}], "responses": ["answer 1", "answer 3"]}
    reply = await api.call("POST", "/v1/reward", {"items": [item]}, token=TOKENS["service"])
    assert reply.status_code == 200, reply.text
    [found] = reply.json()["items"]
    assert line(found, "good")["raw"] == [1.0, 3.0]
    assert found["rewards"] is not None
    assert all(math.isfinite(reward) for reward in found["rewards"])
    assert len(reply.content) < 20_000


@pytest.fixture
async def shared(start: Start, endpoints: Endpoints) -> Any:
    async with start(circuit_least_calls=10_000, circuit_calls=10_000, client_attempts=1, quorum=0.3) as api:
        _, bad = await two(api, endpoints)
        yield api, bad


async def test_an_unforeseen_exception_is_the_clients_error(
    start: Start, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The boundary holds for faults of the parser that nobody knows yet."""

    def broken_parser(body: bytes, items: Any) -> Any:
        if b'"bad"' in body:
            raise RecursionError
        return parse_response(body, items)

    async with start(circuit_least_calls=2, quorum=0.3) as api:
        await two(api, endpoints)
        monkeypatch.setattr("mor_router.clients.client.parse_response", broken_parser)
        for status in ("error", "error", "circuit_open"):
            found = await api.reward("answer 1", "answer 3")
            assert line(found, "bad")["status"] == status
            assert "RecursionError" in line(found, "bad")["detail"]
            assert line(found, "good")["raw"] == [1.0, 3.0]


def test_a_model_of_sixty_kilobytes_is_refused() -> None:
    body = json.dumps({"model": {"name": "m", "version": "v" * 60_000}, "items": []}).encode()
    with pytest.raises(ClientFailure, match="at most 200 characters"):
        parse_response(body, ITEMS)
    assert ModelRef(name="m", version="v" * 200)


def test_reasons_for_all_items_take_the_router_a_moment_at_most() -> None:
    """The worst case: a reason whose pieces almost occur at every place of the texts."""
    text, reason = "a" * 200_000, "aaaaaaaaaaaaaaba" * 31
    message = (Message(role="user", content="?"),)
    items = [
        ScoreItem(item_id=str(number), messages=message, responses=(text, "b"), objective="o") for number in range(200)
    ]
    failed = [{"item_id": item.item_id, "status": "error", "detail": reason} for item in items]
    body = json.dumps({"model": {"name": "m", "version": "1"}, "items": failed}).encode()
    began = time.process_time()
    answers = parse_response(body, items)
    assert time.process_time() - began < 0.5
    details = [answer.detail for answer in answers.values()]
    assert details[0] == reason
    assert details[-1] is not None and "not compared" in details[-1]


@pytest.mark.parametrize(
    "answer",
    [
        {
            "model": {"name": "m", "version": "1"},
            "items": [{"item_id": "x", "status": "ok", "scores": ["1"] * 300_000}],
        },
        {
            "model": {"name": "m", "version": "1"},
            "items": [{"item_id": "x", **dict.fromkeys(map(str, range(300_000)))}],
        },
        {"model": {"name": "m", **dict.fromkeys(map(str, range(300_000)))}, "items": []},
    ],
    ids=["scores", "fields of an item", "fields of the model"],
)
def test_an_answer_with_faults_by_the_hundred_thousand_takes_the_router_a_moment(answer: dict[str, Any]) -> None:
    body = python_json(answer)
    began = time.process_time()
    with contextlib.suppress(ClientFailure):
        assert parse_response(body, ITEMS)["x"].status == "error"
    assert time.process_time() - began < 0.4
