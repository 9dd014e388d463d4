"""Reward service under load: bounded queues, deadlines, lossless shutdown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from mor_core.images import sha256
from mor_reward.config import RewardSettings

from tests.core.test_images import png_of
from tests.reward import reward_kit as kit
from tests.reward.served import RED, TOKEN, TimedScorer, batched_app, function_settings, metric, scores, service, slow

pytestmark = pytest.mark.anyio


async def test_requests_over_a_full_queue_get_429_and_queued_ones_are_scored(settings: RewardSettings) -> None:
    small = settings.model_copy(update={"queue_responses": 8, "batch_responses": 4})
    async with service(small, slow()) as http:
        bodies = [kit.score_body(["a", "b", "c", "d"], RED, item_id=str(number)) for number in range(8)]
        answers = await asyncio.gather(*(http.post("/v1/score", json=body) for body in bodies))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < len(answers)
    assert {answer.status_code for answer in refused} == {429}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert all(scores(answer) == [[1.0] * 4] for answer in answers if answer not in refused)


async def test_requests_over_the_concurrency_limit_get_429(settings: RewardSettings) -> None:
    async with service(settings.model_copy(update={"concurrency": 1}), slow()) as http:
        body = kit.score_body(["a", "b"], RED)
        answers = await asyncio.gather(*(http.post("/v1/score", json=body) for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [200, 429, 429]


async def test_a_request_that_would_miss_its_deadline_is_refused_at_once(settings: RewardSettings) -> None:
    async with service(settings, slow()) as http:
        body = kit.score_body([f"answer {number}" for number in range(20)], RED)
        assert (await http.post("/v1/score", json=body)).status_code == 200  # measures the time of a response
        started = asyncio.get_running_loop().time()
        late = await http.post("/v1/score", json=body, headers={"X-MoR-Deadline-Ms": "100"})
        assert asyncio.get_running_loop().time() - started < 0.4
        in_time = await http.post("/v1/score", json=body, headers={"X-MoR-Deadline-Ms": "5000"})
        bad = await http.post("/v1/score", json=body, headers={"X-MoR-Deadline-Ms": "soon"})
    assert late.status_code == 429
    assert "the deadline is in 0." in late.json()["detail"]
    assert in_time.status_code == 200
    assert bad.status_code == 422


async def test_pictures_by_hash_count_against_the_budget_of_a_request(settings: RewardSettings, tmp_path: Path) -> None:
    pictures = [png_of(8000, 8000) + bytes([number]) for number in range(5)]
    names = [sha256(content) for content in pictures]
    async with service(function_settings(settings, tmp_path, "return [1.0] * len(responses)")) as http:
        for name, content in zip(names, pictures, strict=True):
            one = kit.score_body(["a"], content)
            assert name in one["images"]
            assert (await http.post("/v1/score", json=one)).json()["items"][0]["status"] == "unscorable"
        parts = [{"type": "image_url", "image_url": {"url": f"sha256:{name}"}} for name in names]
        item = {"item_id": "all", "messages": [{"role": "user", "content": parts}], "responses": ["a"]}
        answer = await http.post("/v1/score", json={"items": [item]})
    assert answer.status_code == 200
    assert answer.json()["items"][0]["status"] == "unscorable"
    assert "pixels together" in answer.json()["items"][0]["detail"]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(2000):
        if await condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


async def test_one_slow_pass_does_not_turn_callers_away_for_ever(settings: RewardSettings) -> None:
    scorer = TimedScorer(lambda responses: 0.5 if responses[0] == "slow" else 0)
    async with service(settings, scorer) as http:
        assert (await http.post("/v1/score", json=kit.score_body(["slow"], RED))).status_code == 200
        deadline = {"X-MoR-Deadline-Ms": "300"}
        quick = kit.score_body(["quick"], RED)
        statuses = [(await http.post("/v1/score", json=quick, headers=deadline)).status_code for _ in range(20)]
    assert statuses[0] == 429
    assert statuses[-1] == 200


async def test_an_item_whose_deadline_passes_in_the_queue_is_not_scored(settings: RewardSettings) -> None:
    scorer = slow(0)
    scorer.release = threading.Event()

    async def began() -> bool:
        return scorer.calls == ["first"]

    async with service(settings.model_copy(update={"batch_responses": 1}), scorer) as http:
        first = asyncio.create_task(http.post("/v1/score", json=kit.score_body(["first"], RED)))
        await until(began)
        deadline = {"X-MoR-Deadline-Ms": "100"}
        late = asyncio.create_task(http.post("/v1/score", json=kit.score_body(["late"], RED), headers=deadline))
        await asyncio.sleep(0.3)
        scorer.release.set()
        assert (await first).status_code == 200
        answer = await late
    assert answer.status_code == 503
    assert "deadline passed" in answer.json()["detail"]
    assert scorer.calls == ["first"]


async def test_stopping_finishes_what_is_queued(settings: RewardSettings) -> None:
    scorer = slow(0)
    scorer.release = threading.Event()
    app = batched_app(settings.model_copy(update={"batch_responses": 2}), scorer)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reward", headers=headers) as http:

        async def all_but_the_first_wait() -> bool:
            return await metric(http, "mor_reward_queued_responses") == 8

        async with app.router.lifespan_context(app):
            bodies = [kit.score_body(["a", "b"], RED, item_id=str(number)) for number in range(5)]
            calls = [asyncio.create_task(http.post("/v1/score", json=body)) for body in bodies]
            await until(all_but_the_first_wait)
            scorer.release.set()
        answers = await asyncio.gather(*calls)
        assert [answer.status_code for answer in answers] == [200] * 5
        after = await http.post("/v1/score", json=bodies[0])
        assert after.status_code == 503
        assert (await http.get("/readyz")).status_code == 503
