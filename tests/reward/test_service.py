"""The reward contract over HTTP: pictures by hash, limits, tokens, per-item failures, batching."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_core.images import sha256
from mor_core.wire import Card
from mor_reward.app import create_app
from mor_reward.config import RewardSettings

from tests.reward import reward_kit as kit
from tests.reward.served import ANSWERS, BLUE, RED, VIEWER, function_settings, metric, scores, service


@pytest.mark.anyio
async def test_scores_prefer_the_response_that_matches_the_picture(http: httpx.AsyncClient) -> None:
    [red] = scores(await http.post("/v1/score", json=kit.score_body(ANSWERS, RED)))
    [blue] = scores(await http.post("/v1/score", json=kit.score_body(ANSWERS, BLUE)))
    assert red is not None
    assert blue is not None
    assert max(red) == red[0]
    assert max(blue) == blue[1]


@pytest.mark.anyio
async def test_bytes_are_needed_only_for_unknown_pictures(http: httpx.AsyncClient) -> None:
    by_hash = kit.score_body(ANSWERS, RED, send=False)
    first = await http.post("/v1/score", json=by_hash)
    assert first.status_code == 409
    assert first.json() == {"missing_images": [sha256(RED)]}

    sent = scores(await http.post("/v1/score", json=kit.score_body(ANSWERS, RED)))
    assert scores(await http.post("/v1/score", json=by_hash)) == sent


@pytest.mark.anyio
async def test_pictures_dropped_from_the_cache_are_requested_again(settings: RewardSettings) -> None:
    small = settings.model_copy(update={"image_cache_bytes": len(RED) + len(BLUE) - 1})
    async with service(small) as http:
        for picture in (RED, BLUE):
            scores(await http.post("/v1/score", json=kit.score_body(ANSWERS, picture)))
        assert (await http.post("/v1/score", json=kit.score_body(ANSWERS, RED, send=False))).status_code == 409
        assert (await http.post("/v1/score", json=kit.score_body(ANSWERS, BLUE, send=False))).status_code == 200


@pytest.mark.anyio
async def test_a_picture_is_encoded_once(http: httpx.AsyncClient) -> None:
    scores(await http.post("/v1/score", json=kit.score_body(ANSWERS, RED)))
    line = 'mor_reward_cache_lookups_total{cache="features",result="miss"}'
    before = await metric(http, line)
    scores(await http.post("/v1/score", json=kit.score_body(ANSWERS, RED, send=False)))
    assert await metric(http, line) == before


@pytest.mark.anyio
async def test_bytes_under_a_wrong_hash_are_refused(http: httpx.AsyncClient) -> None:
    body = kit.score_body(ANSWERS, RED)
    body["images"] = {sha256(RED): base64.b64encode(BLUE).decode()}
    answer = await http.post("/v1/score", json=body)
    assert answer.status_code == 422
    assert sha256(RED)[:12] in answer.json()["detail"]
    assert sha256(BLUE)[:12] in answer.json()["detail"]


@pytest.mark.anyio
async def test_the_card_has_calibration_and_limits(http: httpx.AsyncClient, trained: Path) -> None:
    card = Card.model_validate_json((await http.get("/v1/card")).content)
    assert card.model.name == "colours"
    assert card.domains == "shapes in four colours"
    assert card.calibration is not None
    assert card.calibration.pair_accuracy > 0.9
    assert card.limits.items == 64
    scored = (await http.post("/v1/score", json=kit.score_body(ANSWERS, RED))).json()
    assert scored["model"] == {"name": "colours", "version": card.model.version}
    assert json.loads((trained / "reward.json").read_text())["version"] == card.model.version


@pytest.mark.anyio
async def test_served_scores_are_raw_scores_over_the_temperature(http: httpx.AsyncClient, trained: Path) -> None:
    from mor_core.wire import ScoreRequest
    from mor_reward import model_store
    from mor_reward.backbones import Example, Picture

    manifest, backbone = model_store.load(trained)
    body = kit.score_body(ANSWERS, RED)
    messages = ScoreRequest.model_validate_json(json.dumps(body)).items[0].messages
    raw = backbone.score([Example(messages, (Picture(sha256(RED), RED),), answer) for answer in ANSWERS])
    [served] = scores(await http.post("/v1/score", json=body))
    assert served == pytest.approx((raw / manifest.calibration.temperature).tolist(), abs=1e-5)


@pytest.mark.anyio
async def test_batching_across_requests_changes_no_score(http: httpx.AsyncClient) -> None:
    bodies = [
        kit.score_body(random.Random(number).sample(ANSWERS, 3), kit.draw(colour, 50 + number), item_id=f"i{number}")
        for number, colour in enumerate([*kit.COLOURS] * 3)
    ]
    alone = [scores(await http.post("/v1/score", json=body))[0] for body in bodies]
    before = await metric(http, "mor_reward_batch_responses_count")
    together = await asyncio.gather(*(http.post("/v1/score", json=body) for body in bodies))
    passes = await metric(http, "mor_reward_batch_responses_count") - before
    assert passes < len(bodies)
    for one, other in zip(alone, together, strict=True):
        assert scores(other)[0] == pytest.approx(one, abs=1e-5)


@pytest.mark.anyio
async def test_the_order_of_responses_and_items_does_not_matter(http: httpx.AsyncClient) -> None:
    first, second = kit.score_body(ANSWERS, RED, item_id="a"), kit.score_body(ANSWERS[::-1], BLUE, item_id="b")
    both = {**first, "items": first["items"] + second["items"], "images": first["images"] | second["images"]}
    swapped = {**both, "items": both["items"][::-1]}
    [a, b], [b_again, a_again] = (
        scores(await http.post("/v1/score", json=both)),
        scores(await http.post("/v1/score", json=swapped)),
    )
    assert a == pytest.approx(a_again, abs=1e-5)
    assert b == pytest.approx(b_again, abs=1e-5)
    repeated = kit.score_body([ANSWERS[0], ANSWERS[1], ANSWERS[0]], RED)
    [group] = scores(await http.post("/v1/score", json=repeated))
    assert group is not None
    assert group[0] == group[2]


@pytest.mark.anyio
async def test_a_failing_item_does_not_affect_the_others(http: httpx.AsyncClient) -> None:
    broken = b"no picture at all"
    good = kit.score_body(ANSWERS, RED, item_id="good")
    bad = [
        kit.score_body(ANSWERS, broken, item_id="broken"),
        kit.score_body(ANSWERS, RED, BLUE, kit.draw("green"), item_id="many"),
        kit.score_body(["red " * 60], RED, item_id="long"),
    ]
    body = {**good, "items": [*(one["items"][0] for one in bad), *good["items"]]}
    for one in bad:
        body["images"] = body["images"] | one["images"]
    answer = (await http.post("/v1/score", json=body)).json()["items"]

    assert [item["status"] for item in answer] == ["unscorable", "unscorable", "unscorable", "ok"]
    assert [item["scores"] for item in answer[:3]] == [None, None, None]
    assert "not a readable image" in answer[0]["detail"]
    assert "3 pictures; this model reads at most 2" in answer[1]["detail"]
    assert "tokens; this model reads at most 32" in answer[2]["detail"]
    assert [answer[3]["scores"]] == scores(await http.post("/v1/score", json=good))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("return [math.nan if 'bad' in r else 1.0 for r in responses]", "the model returned nan for response 1"),
        ("return [1.0] if 'bad' in responses[1] else [1.0] * 3", "returned 1 scores for 3 responses"),
        ("return [1.0, {}['x'], 1.0] if 'bad' in responses[1] else [1.0] * 3", "failed on this item: KeyError"),
        ("return ['x'] * 3 if 'bad' in responses[1] else [1.0] * 3", "what is no number for a response; return"),
        ("return '123' if 'bad' in responses[1] else [1.0] * 3", "the function returned str; return a list with one"),
        ("return iter(float, 1) if 'bad' in responses[1] else [1.0] * 3", "returned over 3 scores for 3 responses"),
        ("return [10**400] * 3 if 'bad' in responses[1] else [1.0] * 3", "what is no number for a response; return"),
        ("return next(iter(())) if 'bad' in responses[1] else [1.0] * 3", "a call raised StopIteration"),
        ("return sys.exit(3) if 'bad' in responses[1] else [1.0] * 3", "a call raised SystemExit"),
    ],
)
async def test_an_invalid_function_result_is_an_item_error_and_never_a_zero(
    body: str, detail: str, settings: RewardSettings, tmp_path: Path
) -> None:
    async with service(function_settings(settings, tmp_path, body)) as http:
        bad = kit.score_body(["a", "bad", "c"], RED, item_id="bad")
        good = kit.score_body(["a", "b", "c"], RED, item_id="good")
        answer = await http.post("/v1/score", json={**bad, "items": bad["items"] + good["items"]})
        spoilt, fine = answer.json()["items"]
    assert spoilt["status"] == "error"
    assert spoilt["scores"] is None
    assert detail in spoilt["detail"]
    assert fine["scores"] == [1.0, 1.0, 1.0]


@pytest.mark.anyio
async def test_a_function_gets_messages_responses_and_pictures(settings: RewardSettings, tmp_path: Path) -> None:
    body = "return [len(r) + images[0].width + len(messages[0]['content']) for r in responses]"
    async with service(function_settings(settings, tmp_path, body)) as http:
        assert scores(await http.post("/v1/score", json=kit.score_body(["a", "bcd"], RED))) == [[67.0, 69.0]]
        card = (await http.get("/v1/card")).json()
    assert card["model"]["name"] == "score"
    assert card["calibration"] is None


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("limit", "value", "detail"),
    [
        ("max_items", 1, "2 items; a request may have at most 1"),
        ("max_responses", 2, "item 'a' has 3 responses; an item may have at most 2"),
        ("max_request_bytes", 300, "limited to 300 bytes; send fewer items"),
    ],
)
async def test_a_request_over_a_limit_gets_413_with_the_cure(
    limit: str, value: int, detail: str, settings: RewardSettings
) -> None:
    body = kit.score_body(ANSWERS, RED, item_id="a")
    body["items"] += kit.score_body(ANSWERS, RED, item_id="b")["items"]
    async with service(settings.model_copy(update={limit: value})) as http:
        answer = await http.post("/v1/score", json=body)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert detail in answer.json()["detail"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"temperature": 1}, "body.temperature"),
        ({"contract": "mor.reward/9"}, "body.contract"),
        ({"items": []}, "body.items"),
    ],
)
async def test_an_invalid_request_gets_422_with_the_field(
    change: dict[str, Any], where: str, http: httpx.AsyncClient
) -> None:
    answer = await http.post("/v1/score", json={**kit.score_body(ANSWERS, RED), **change})
    assert answer.status_code == 422
    assert where in answer.json()["detail"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("token", "status", "detail"),
    [
        ("", 401, "Authorization"),
        ("wrong", 401, "unknown bearer token"),
        (VIEWER, 403, "use one of scope admin or service"),
    ],
    ids=["none", "unknown", "viewer"],
)
async def test_a_call_needs_the_service_scope(token: str, status: int, detail: str, http: httpx.AsyncClient) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {"Authorization": ""}
    for call in (
        http.post("/v1/score", json=kit.score_body(ANSWERS, RED), headers=headers),
        http.get("/v1/card", headers=headers),
    ):
        answer = await call
        assert answer.status_code == status
        assert detail in answer.json()["detail"]


@pytest.mark.anyio
async def test_health_and_metrics(http: httpx.AsyncClient) -> None:
    scores(await http.post("/v1/score", json=kit.score_body(ANSWERS, RED)))
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/readyz")).json() == {"ready": True, "missing": {}, "degraded": {}}
    for name in (
        'mor_reward_requests_total{status="200"}',
        'mor_reward_items_total{status="ok"}',
        "mor_reward_responses_total",
        "mor_reward_request_seconds_count",
        "mor_reward_batch_responses_count",
        "mor_reward_batch_seconds_count",
    ):
        assert await metric(http, name) > 0, name
    assert await metric(http, "mor_reward_queued_responses") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_dir": None}, "give exactly one of MOR_MODEL_DIR"),
        ({"model_dir": Path("/nowhere")}, "has no reward.json"),
        (
            {"model_dir": None, "function": "/nowhere.py:score"},
            r"no file '/nowhere.py'; write it as path/to/file.py:function",
        ),
        ({"device": "abacus"}, "device 'abacus'"),
    ],
)
def test_a_wrong_model_stops_the_start_with_the_cure(
    change: dict[str, Any], message: str, settings: RewardSettings
) -> None:
    with pytest.raises(ValueError, match=message):
        create_app(RewardSettings(**{**settings.model_dump(), **change}))
