"""Good, bad and missing answers of clients: a group never gets a zero for them, and never waits long."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.responses import JSONResponse, Response
from mor_core.images import sha256
from mor_router.schemas import ItemReward
from PIL import Image
from prometheus_client import REGISTRY

from tests.router.conftest import Api, Start, eventually
from tests.router.endpoints import TOKEN, Endpoint, Endpoints, Flood, html, never, redirect, resetting, unavailable

pytestmark = pytest.mark.anyio

_GENEROUS_S = 30


def line(found: dict[str, Any], client: str) -> dict[str, Any]:
    return next(score for score in found["clients"] if score["client"] == client)


async def two(api: Api, endpoints: Endpoints) -> tuple[Endpoint, Endpoint]:
    good, bad = endpoints.endpoint("good"), endpoints.endpoint("bad")
    await api.enrol(good)
    await api.enrol(bad)
    return good, bad


def swap(scores: Any) -> Any:
    return lambda items: [{**item, "scores": scores} for item in items]


MANGLED = {
    "nan": (swap([float("nan"), 1.0]), "1 of 2 scores are nan"),
    "infinite": (swap([float("inf"), 1.0]), "1 of 2 scores are inf"),
    "huge": (swap([10**400, 1.0]), "beyond 1e+09"),
    "wrong length": (swap([1.0]), "1 scores for 2 responses"),
    "none": (swap(None), "'scores' go with status 'ok'"),
    "text": (swap(["1", "two"]), "malformed item"),
    "left out": (lambda items: [], "leaves this item out"),
    "unknown": (lambda items: [{**items[0], "item_id": "other"}], "'other', which was not sent"),
    "twice": (lambda items: items * 2, "twice"),
    "unscorable": (
        lambda items: [{"item_id": items[0]["item_id"], "status": "unscorable", "scores": None, "detail": "no image"}],
        "no image",
    ),
}


@pytest.mark.parametrize("kind", MANGLED)
async def test_a_bad_answer_is_an_error_and_the_other_clients_reward_the_group(
    api: Api, endpoints: Endpoints, kind: str
) -> None:
    _, bad = await two(api, endpoints)
    bad.mangle, expected = MANGLED[kind]
    found = await api.reward("answer 1", "answer 3")
    assert line(found, "bad")["status"] == ("unscorable" if kind == "unscorable" else "error")
    assert expected in line(found, "bad")["detail"]
    assert (line(found, "bad")["weight"], line(found, "bad")["gate_weight"]) == (0, 0.5)
    assert line(found, "good")["weight"] == 1
    assert found["rewards"][1] > found["rewards"][0]


BROKEN = {
    "html": (html, "answered with text/html"),
    "redirect": (redirect, "a redirect"),
    "not json": (lambda _: Response(b"{", media_type="application/json"), "not JSON"),
    "a list": (lambda _: JSONResponse([1]), "not a ScoreResponse"),
    "no model": (lambda _: JSONResponse({"items": []}), "names no model"),
    "compressed": (
        lambda _: Response(b"x" * 20, media_type="application/json", headers={"Content-Encoding": "gzip"}),
        "content encoding gzip",
    ),
    "server error": (lambda _: JSONResponse({"detail": "out of memory"}, 500), "answered 500 (out of memory)"),
    "too many items": (lambda _: JSONResponse({"detail": "at most 4 items"}, 413), "answered 413 (at most 4 items)"),
    "strange images": (lambda _: JSONResponse({"missing_images": ["0" * 64]}, 409), "does not name"),
    "409 without list": (lambda _: JSONResponse({"detail": "conflict"}, 409), "without a list 'missing_images'"),
    "long length": (
        lambda _: Response(b" " * 100_000, media_type="application/json"),
        "the answer has 100000 bytes",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_call_is_an_error_with_a_reason(api: Api, endpoints: Endpoints, kind: str) -> None:
    _, bad = await two(api, endpoints)
    bad.broken, expected = BROKEN[kind]
    found = await api.reward("answer 1", "answer 3")
    assert line(found, "bad")["status"] == "error"
    assert expected in line(found, "bad")["detail"]
    assert line(found, "bad")["raw"] is None
    assert len(bad.calls) == 1  # none of these failures is worth a retry


async def test_ten_gigabytes_are_cut_off_after_a_few_kilobytes(api: Api, endpoints: Endpoints) -> None:
    _, bad = await two(api, endpoints)
    flood = Flood()
    bad.broken = flood
    found = await api.reward("answer 1", "answer 3")
    assert "more than" in line(found, "bad")["detail"]
    assert flood.sent < 64 << 20  # of ten gigabytes


async def test_a_client_that_never_answers_costs_no_more_than_the_deadline(start: Start, endpoints: Endpoints) -> None:
    async with start(deadline_s=0.5) as api:
        _, bad = await two(api, endpoints)
        bad.broken = never
        async with asyncio.timeout(_GENEROUS_S):  # it would send for a minute
            found = await api.reward("answer 1", "answer 3")
        assert (line(found, "bad")["status"], line(found, "good")["status"]) == ("timeout", "ok")
        assert found["status"] == "ok"
        assert 0 < int(bad.headers[-1]["x-mor-deadline-ms"]) <= 500


async def test_a_slow_shadow_costs_nothing(api: Api, endpoints: Endpoints) -> None:
    good, slow = endpoints.endpoint("good"), endpoints.endpoint("slow")
    await api.enrol(good)
    await api.enrol(slow, state="probation")
    slow.delay_s, before = 5, slow.answered
    found = await api.reward("answer 1", "answer 3")
    assert slow.answered == before  # the group did not wait for it
    assert (line(found, "slow")["status"], line(found, "slow")["weight"]) == ("shadow", 0)
    assert "slower than the weighted clients" in line(found, "slow")["detail"]
    slow.delay_s, good.delay_s = 0, 0.3
    found = await api.reward("answer 1", "answer 3")
    assert line(found, "slow")["raw"] == [1, 3]
    assert line(found, "slow")["weight"] == 0


async def test_a_slow_shadow_takes_no_calls_from_another(api: Api, endpoints: Endpoints) -> None:
    await api.enrol(endpoints.endpoint("good"))
    slow, fast = endpoints.endpoint("slow"), endpoints.endpoint("fast")
    await api.enrol(slow, state="probation")
    await api.enrol(fast, state="probation")
    slow.delay_s = 3
    for _ in range(20):
        await api.reward("answer 1", "answer 3")

    async def called() -> bool:
        return len(fast.calls) == 20

    await eventually(called)
    found = await api.reward("answer 1", "answer 3")
    assert "slower than the weighted clients" in line(found, "slow")["detail"]
    assert len(slow.calls) <= 16


async def test_a_reset_connection_is_retried_and_then_reported(start: Start, endpoints: Endpoints) -> None:
    async with start(client_attempts=3) as api:
        with resetting() as address:
            body = {"name": "bad", "url": address, "token": TOKEN}
            answer = await api.call("POST", "/v1/clients", body)
            assert f"at {address}: its reward service cannot be reached" in answer.json()["detail"]


async def test_busy_clients_are_retried_after_the_pause_they_request(api: Api, endpoints: Endpoints) -> None:
    good, _ = await two(api, endpoints)
    good.broken, good.mend_after = unavailable, 2
    found = await api.reward("answer 1", "answer 3")
    assert line(found, "good")["status"] == "ok"
    assert len(good.calls) == 3
    assert line(found, "good")["seconds"] >= 0.1


async def test_the_number_of_retries_is_bounded(api: Api, endpoints: Endpoints) -> None:
    good, _ = await two(api, endpoints)
    good.broken = unavailable
    found = await api.reward("answer 1", "answer 3")
    assert "answered 503 (loading)" in line(found, "good")["detail"]
    assert len(good.calls) == 3


async def test_a_requested_pause_beyond_the_deadline_is_not_waited_for(api: Api, endpoints: Endpoints) -> None:
    good, _ = await two(api, endpoints)
    good.broken = lambda _: JSONResponse({"detail": "later"}, 429, headers={"Retry-After": "30"})
    found = await api.reward("answer 1", "answer 3")
    assert "answered 429" in line(found, "good")["detail"]
    assert len(good.calls) == 1


async def test_a_client_that_declines_a_group_costs_its_own_weight_only(start: Start, endpoints: Endpoints) -> None:
    async with start(quorum=0.9) as api:
        _, bad = await two(api, endpoints)
        bad.mangle = MANGLED["unscorable"][0]
        found = await api.reward("answer 1", "answer 3")
        assert (found["status"], line(found, "bad")["status"], line(found, "good")["weight"]) == ("ok", "unscorable", 1)
        bad.mangle = MANGLED["nan"][0]
        assert (await api.reward("answer 1", "answer 3"))["status"] == "ok"


async def test_images_are_sent_once_and_only_on_request(api: Api, endpoints: Endpoints) -> None:
    good, _ = await two(api, endpoints)
    content = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(content, "PNG")
    digest = sha256(content.getvalue())
    parts = [
        {"type": "image_url", "image_url": {"url": f"sha256:{digest}"}},
        {"type": "text", "text": "Which colour?"},
    ]
    item = {"item_id": "g", "messages": [{"role": "user", "content": parts}], "responses": ["red 2", "blue 1"]}
    images = {digest: base64.b64encode(content.getvalue()).decode()}
    for _ in range(2):
        found = await api.ok("POST", "/v1/reward", {"items": [item], "images": images})
        assert found["items"][0]["status"] == "ok"
    assert [list(call["images"]) for call in good.calls] == [[], [digest], []]
    assert good.images[digest] == content.getvalue()
    found = await api.ok("POST", "/v1/reward", {"items": [item]})
    assert found["items"][0]["status"] == "ok", "the router keeps the caller's images"
    wrong = await api.call("POST", "/v1/reward", {"items": [item], "images": {digest: "AAAA"}})
    assert "its bytes have SHA-256" in wrong.json()["detail"]


async def test_a_client_that_evicts_images_at_once_is_an_error(api: Api, endpoints: Endpoints) -> None:
    good, _ = await two(api, endpoints)
    content = io.BytesIO()
    Image.new("RGB", (32, 32), "blue").save(content, "PNG")
    digest = sha256(content.getvalue())
    good.broken = lambda _: JSONResponse({"missing_images": [digest]}, 409)
    parts = [{"type": "image_url", "image_url": {"url": f"sha256:{digest}"}}]
    item = {"item_id": "g", "messages": [{"role": "user", "content": parts}], "responses": ["a 1", "b 2"]}
    images = {digest: base64.b64encode(content.getvalue()).decode()}
    found = (await api.ok("POST", "/v1/reward", {"items": [item], "images": images}))["items"][0]
    assert "keeps requesting images" in line(found, "good")["detail"]


async def test_without_the_failing_experts_weight_there_is_no_quorum(start: Start, endpoints: Endpoints) -> None:
    async with start(quorum=0.6) as api:
        _, bad = await two(api, endpoints)
        bad.broken = html
        found = await api.reward("answer 1", "answer 3")
        assert (found["status"], found["rewards"]) == ("error", None)
        assert "held 0.50 of the gate's weight, 0.6 is wanted" in found["detail"]
        assert "bad: error, answered with text/html" in found["detail"]


async def test_metrics_have_rewards_weights_latency_and_failures(api: Api, endpoints: Endpoints) -> None:
    _, bad = await two(api, endpoints)
    before = [REGISTRY.get_sample_value(f"mor_router_ood_score_ratio_{part}") or 0.0 for part in ("count", "sum")]
    await api.reward("answer 1", "answer 3")
    for part, value in zip(("count", "sum"), before, strict=True):  # one group without anchors
        assert REGISTRY.get_sample_value(f"mor_router_ood_score_ratio_{part}") == value + 1
    bad.broken = html
    await api.reward("answer 1", "answer 3")
    text = (await api.call("GET", "/metrics")).text
    for name in (
        'mor_router_client_reward_logits_count{client="good"}',
        'mor_router_mixture_weight_ratio_sum{client="good"}',
        'mor_router_client_seconds_bucket{client="good"',
        'mor_router_client_failures_total{client="bad",reason="content_type"}',
        'mor_router_circuit_state{client="good"} 0.0',
        "mor_router_reward_std_logits_sum",
        "mor_router_mixture_entropy_nats_sum",
        "mor_router_disagreement_logits_sum",
    ):
        assert name in text, name
    await api.ok("DELETE", "/v1/clients/bad")
    assert 'client="bad"' not in (await api.call("GET", "/metrics")).text


def test_the_schema_promises_every_field_of_a_reward() -> None:
    schema = ItemReward.model_json_schema(mode="serialization")
    assert set(schema["required"]) == set(schema["properties"])


@pytest.mark.parametrize(
    "quoting",
    [
        lambda text: JSONResponse({"detail": [{"loc": ["body"], "msg": "wrong", "input": text}]}, 422),
        lambda text: JSONResponse({"detail": f"cannot score {text!r}"}, 500),
        lambda text: Response(f"<h1>{text}</h1>", 500, media_type="text/html"),
    ],
)
async def test_an_error_that_repeats_the_request_is_not_quoted(
    api: Api, endpoints: Endpoints, quoting: Callable[[str], Response]
) -> None:
    """FastAPI's own answer to a wrong body quotes it; other frameworks quote it as text."""
    question = "Which of these two scans shows the left temporal lobe?"
    _, bad = await two(api, endpoints)
    bad.broken = lambda _: quoting(question)
    found = await api.reward("answer 1", "answer 3", text=question)
    assert "answered" in line(found, "bad")["detail"]
    assert "temporal" not in line(found, "bad")["detail"]
    assert "temporal" not in str(await api.ok("GET", "/v1/status"))


async def test_a_reason_of_an_item_that_repeats_the_prompt_is_not_kept(api: Api, endpoints: Endpoints) -> None:
    question = "Which of these two scans shows the left temporal lobe?"
    _, bad = await two(api, endpoints)
    for reason, kept in ((f"no such organ in {question!r}", False), ("the picture is too dark", True)):
        refusal = {"status": "unscorable", "scores": None, "detail": reason}
        bad.mangle = lambda items, refusal=refusal: [{"item_id": items[0]["item_id"], **refusal}]
        found = await api.reward("answer 1", "answer 3", text=question)
        assert (line(found, "bad")["detail"] == reason) is kept
        assert "temporal" not in str(found)
