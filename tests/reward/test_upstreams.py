"""Scores of reward models that run elsewhere, in every protocol: raw, in order, bounded, without secrets in errors."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mor_core.auth import hash_token
from mor_core.errors import Invalid, Unavailable
from mor_core.wire import ImagePart, Message, TextPart
from mor_reward.backbones import Example, Picture
from mor_reward.concurrent_scoring import ConcurrentScoring
from mor_reward.config import RewardSettings
from mor_reward.group_scorer import ModelAway
from mor_reward.scoring_engine import ItemOutcome
from mor_reward.upstream import UpstreamScorer, UpstreamSettings
from mor_reward.upstream.connection import Connection
from pydantic import ValidationError
from starlette.responses import RedirectResponse, StreamingResponse
from structlog.testing import capture_logs

from tests.reward.limited import group
from tests.reward.limited import scores as scores_of
from tests.reward.reward_kit import draw, score_body
from tests.reward.served import TOKEN, service
from tests.reward.upstream_conformance import TEXTS_ALONE, clauses_not_kept
from tests.reward.upstream_servers import KEY, Upstreams
from tests.trainer.kit import served

pytestmark = pytest.mark.anyio

RESPONSES = ("it is 2", "it is -1.5", "it is 0.25")
SCORES = [2.0, -1.5, 0.25]
QUESTION = (Message(role="user", content="how many sheep?"),)
PROTOCOLS: list[dict[str, Any]] = [
    {"protocol": "openrlhf"},
    {"protocol": "classify"},
    {"protocol": "classify", "chat": True},
    {"protocol": "classify", "server": "sglang", "path": "/sglang/classify"},
    {"protocol": "score", "model": "rm"},
    {"protocol": "rerank"},
    {"protocol": "rerank", "server": "tei", "path": "/tei/rerank"},
    {"protocol": "rerank", "server": "tei", "path": "/tei/rerank", "probabilities": True},
    {"protocol": "predict", "label": "good"},
    {"protocol": "kserve", "model": "rm", "label": 1},
    {"protocol": "kserve", "model": "hf", "label": "good"},
    {"protocol": "chat", "model": "judge", "mode": "rating"},
    {"protocol": "verify"},
]


@asynccontextmanager
async def scoring(url: str, protocol: dict[str, Any], **more: Any) -> AsyncIterator[ConcurrentScoring]:
    settings = UpstreamSettings.model_validate({"protocol": protocol, "url": url, **more})
    scorer = UpstreamScorer(settings)
    try:
        yield ConcurrentScoring(scorer, most_responses=4096)
    finally:
        await scorer.close()


def item(responses: Sequence[str] = RESPONSES, messages: tuple[Message, ...] = QUESTION) -> list[Example]:
    return [Example(messages, (), response) for response in responses]


async def ask(queue: ConcurrentScoring, *items: list[Example], seconds: float = 120.0) -> list[ItemOutcome]:
    return await queue.score(items, time.monotonic() + seconds, "router")


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda given: "-".join(map(str, given.values())))
async def test_scores_are_the_raw_logits_of_the_upstream(upstreams: Upstreams, protocol: dict[str, Any]) -> None:
    async with served(upstreams.app) as url, scoring(url, protocol) as queue:
        (outcome,) = await ask(queue, item())
        assert outcome.status == "ok", outcome.detail
        assert outcome.scores == pytest.approx(SCORES, abs=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda given: "-".join(map(str, given.values())))
async def test_every_protocol_keeps_the_contract(
    upstreams: Upstreams, tokens_file: Path, protocol: dict[str, Any]
) -> None:
    options = {name: value for name, value in protocol.items() if name != "protocol"}
    async with served(upstreams.app) as url:
        assert await clauses_not_kept(url, tokens_file, protocol["protocol"], options) == TEXTS_ALONE


async def test_comparisons_in_both_orders_cancel_a_preference_of_position(upstreams: Upstreams) -> None:
    upstreams.prefers_first = 0.5
    protocol = {"protocol": "chat", "model": "judge", "neighbours": 2}
    async with served(upstreams.app) as url, scoring(url, protocol) as queue:
        (outcome,) = await ask(queue, item(("9", "4", "4.2", "1")))
        assert outcome.scores is not None
        best, one, other, worst = outcome.scores
        assert best > one > worst
        assert one == pytest.approx(other)  # they differ by less than the position does


@pytest.mark.parametrize("reply", ["{:g}/10", "Rating: {:g} / 10.", "{:g} out of 10", "of 1 to 10 I give **{:g}**"])
async def test_the_scale_of_a_rating_is_not_the_rating(upstreams: Upstreams, reply: str) -> None:
    upstreams.rating = reply
    protocol = {"protocol": "chat", "model": "judge", "mode": "rating"}
    async with served(upstreams.app) as url, scoring(url, protocol) as queue:
        (outcome,) = await ask(queue, item(("7", "2.5", "10")))
        assert outcome.scores == (7.0, 2.5, 10.0)


@pytest.mark.parametrize(
    "choices", [("a", "answer b."), ("A is a better answer", "B, a better one"), ("**A**", "It is B")]
)
async def test_a_choice_is_read_past_articles(upstreams: Upstreams, choices: tuple[str, str]) -> None:
    upstreams.choices = choices
    async with served(upstreams.app) as url, scoring(url, {"protocol": "chat", "model": "judge"}) as queue:
        (outcome,) = await ask(queue, item(("9", "4", "1")))
        assert outcome.scores is not None and list(outcome.scores) == sorted(outcome.scores, reverse=True)
        assert outcome.scores[0] > outcome.scores[1] > outcome.scores[2]


async def test_the_objective_in_words_is_the_judges_rubric(upstreams: Upstreams) -> None:
    async with served(upstreams.app) as url, scoring(url, {"protocol": "chat", "model": "judge"}) as queue:
        await ask(queue, [Example(QUESTION, (), text, objective="Be brief.") for text in ("1", "2")])
    assert all("What counts: Be brief." in body["messages"][-1]["content"] for _, body in upstreams.bodies)


async def test_a_judge_gets_each_picture_where_it_stood(upstreams: Upstreams) -> None:
    shown = Picture("a" * 64, draw("red", 1))
    messages = (Message(role="user", content=(ImagePart.of("a" * 64), TextPart(text="what is it?"))),)
    protocol = {"protocol": "chat", "model": "judge", "mode": "rating"}
    async with served(upstreams.app) as url, scoring(url, protocol, sees_pictures=True) as queue:
        (outcome,) = await ask(queue, [Example(messages, (shown,), "7")])
        assert outcome.scores == (7.0,)
    picture, text = upstreams.bodies[0][1]["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "what is it?"}


async def test_groups_are_scored_at_the_same_time_within_the_bound(upstreams: Upstreams) -> None:
    upstreams.delay_s = 0.2
    async with served(upstreams.app) as url, scoring(url, {"protocol": "classify"}, concurrency=8) as queue:
        outcomes = await ask(queue, *[item((f"{number}",)) for number in range(16)])
        assert [outcome.scores for outcome in outcomes] == [(float(number),) for number in range(16)]
        assert upstreams.most_at_once == 8


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
async def test_an_upstream_that_serves_nobody_is_an_outage_of_the_service(upstreams: Upstreams, status: int) -> None:
    upstreams.status = status
    async with served(upstreams.app) as url, scoring(url, {"protocol": "openrlhf"}) as queue:
        with pytest.raises(Unavailable, match=str(status)) as raised:
            await ask(queue, item(), item())
    assert "secret" not in str(raised.value)


async def test_an_upstream_that_refuses_an_item_makes_it_unscorable(upstreams: Upstreams) -> None:
    upstreams.status = 422
    async with served(upstreams.app) as url, scoring(url, {"protocol": "openrlhf"}) as queue:
        (outcome,) = await ask(queue, item())
    assert (outcome.status, outcome.detail) == ("unscorable", "the upstream refuses this item with status 422")


async def test_a_hanging_upstream_costs_one_deadline_for_all_items(upstreams: Upstreams) -> None:
    upstreams.delay_s = 30.0
    async with served(upstreams.app) as url, scoring(url, {"protocol": "classify"}, concurrency=2) as queue:
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable, match="before the deadline"):
                await ask(queue, *[item((str(number),)) for number in range(12)], seconds=0.5)


async def test_a_compressed_answer_is_not_expanded(upstreams: Upstreams) -> None:
    upstreams.compressed = gzip.compress(b'{"rewards": [2, -1.5, 0.25]}')
    async with served(upstreams.app) as url, scoring(url, {"protocol": "openrlhf"}) as queue:
        (outcome,) = await ask(queue, item())
    assert outcome.status == "error"
    assert "does not fit its protocol" in (outcome.detail or "")


async def test_no_score_for_a_response_makes_the_item_unscorable(upstreams: Upstreams) -> None:
    async with served(upstreams.app) as url, scoring(url, {"protocol": "verify"}) as queue:
        outcomes = await ask(queue, item(("1", "unknown")), item(("3",)))
    assert [outcome.status for outcome in outcomes] == ["unscorable", "ok"]


@pytest.mark.parametrize(
    ("protocol", "cure"),
    [
        ({"protocol": "predict"}, "name the score's with label=NAME"),
        ({"protocol": "predict", "label": "fine"}, "has no label 'fine'"),
        ({"protocol": "kserve", "model": "rm"}, "name the score's with label=INDEX"),
        ({"protocol": "kserve", "model": "rm", "output": "other"}, "name the score's with output=NAME"),
        ({"protocol": "kserve", "model": "hf"}, "name the score's with label=NAME"),
        ({"protocol": "kserve", "model": "hf", "label": "godo"}, "other labels than 'godo'"),
        ({"protocol": "classify", "path": "/score-of-nothing"}, "correct the address, the path"),
        ({"protocol": "classify", "path": "/moved"}, "redirects are not followed"),
        (
            {"protocol": "chat", "model": "judge", "mode": "rating", "rating_pattern": r"\[\[(\d+)\]\]"},
            "rating_pattern",
        ),
    ],
)
async def test_a_setting_that_does_not_fit_the_upstream_is_named(
    upstreams: Upstreams, protocol: dict[str, Any], cure: str
) -> None:
    upstreams.app.post("/moved")(lambda: RedirectResponse("/classify"))
    async with served(upstreams.app) as url, scoring(url, protocol) as queue:
        try:
            (outcome,) = await ask(queue, item())
            told = outcome.detail
        except Unavailable as error:
            told = str(error)
        assert told is not None and cure in told


async def test_the_key_travels_and_never_appears(upstreams: Upstreams, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    async with served(upstreams.app) as url, scoring(url, {"protocol": "verify"}, key_file=file) as queue:
        with capture_logs() as logs:
            broken, kept = await ask(queue, item(("breaks",)), item(("1",)))  # the first fails at the upstream
    assert (broken.status, kept.status) == ("error", "ok")
    assert upstreams.authorization == {f"Bearer {KEY}"}
    told = json.dumps([logs, broken.detail], default=repr)
    assert KEY not in told
    assert "sheep" not in told


async def test_calls_that_wait_for_their_turn_hold_no_copies_of_the_prompt() -> None:
    prompt, copies = "x" * (2 << 20), 32
    received = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(prompt))  # the whole body of the first call, which is never answered
        received.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings = UpstreamSettings.model_validate({"protocol": {"protocol": "verify"}, "url": url, "concurrency": 1})
    connection = Connection(settings)
    tracemalloc.start()
    try:
        calls = connection.calls("router", time.monotonic() + 600)
        asked = asyncio.create_task(calls.post("/verify", [{"prompt": prompt}] * copies))
        await received.wait()
        held, _ = tracemalloc.get_traced_memory()
        asked.cancel()
        await asyncio.wait([asked])
    finally:
        tracemalloc.stop()
        await connection.close()
        server.close()
        await server.wait_closed()
    assert held < copies / 4 * len(prompt)


async def test_the_version_follows_the_upstream_and_the_probe_its_health(upstreams: Upstreams) -> None:
    settings = UpstreamSettings.model_validate({"protocol": {"protocol": "classify"}, "url": "http://127.0.0.1:9"})
    async with served(upstreams.app) as url:
        settings = settings.model_copy(update={"url": url})
        scorer, later = UpstreamScorer(settings), UpstreamScorer(settings)
        assert await scorer.problem() is None
        first = scorer.version
        upstreams.bodies.append(("/", {}))  # 'created' moves on, and the model does not
        assert await later.problem() is None
        assert later.version == first
        upstreams.model = "two"
        third = UpstreamScorer(settings)
        assert await third.problem() is None
        assert third.version != first
        upstreams.status = 503
        broken = UpstreamScorer(settings)
        assert "503" in (await broken.problem() or "")
        for each in (scorer, later, third, broken):
            await each.close()


async def test_an_upstream_that_trickles_is_given_up(upstreams: Upstreams) -> None:
    """Each byte comes in time, the answer never."""

    async def bytes_for_ever() -> AsyncIterator[bytes]:
        for _ in range(600):
            yield b" "
            await asyncio.sleep(0.1)

    upstreams.app.get("/v2/health/ready")(lambda: StreamingResponse(bytes_for_ever()))
    async with served(upstreams.app) as url:
        settings = UpstreamSettings.model_validate(
            {"protocol": {"protocol": "kserve", "model": "rm"}, "url": url, "timeout_s": 30}
        )
        connection = Connection(settings)
        async with asyncio.timeout(20):
            with pytest.raises(ModelAway, match="did not answer within"):
                await connection.describe("/v2/health/ready")
        await connection.close()


async def test_a_service_with_an_upstream_keeps_the_contract_and_shows_its_health(
    upstreams: Upstreams, tokens_file: Path
) -> None:
    async with served(upstreams.app) as url:
        settings = RewardSettings(upstream="classify", upstream_url=url, tokens_file=tokens_file)
        async with service(settings) as http:
            assert (await http.get("/readyz")).status_code == 200
            card = (await http.get("/v1/card")).json()
            answer = await http.post("/v1/score", json=score_body(list(RESPONSES), draw("red", 1)))
            assert answer.json()["items"][0]["scores"] == SCORES
            assert answer.json()["model"] == card["model"]
            upstreams.status = 503
            away = await http.post("/v1/score", json=score_body(list(RESPONSES), draw("red", 1)))
            assert (away.status_code, away.headers["Retry-After"]) == (503, "5")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"protocol": {"protocol": "openrlhf"}, "sees_pictures": True}, "carries texts only"),
        ({"protocol": {"protocol": "openrlhf"}, "key_file": "/nowhere"}, "key-file /nowhere"),
        ({"protocol": {"protocol": "openrlhf"}, "template": "/nowhere"}, "template /nowhere"),
        ({"protocol": {"protocol": "openrlhf"}, "url": "http://127.0.0.1:9/v1?api-version=2"}, "path=/…"),
    ],
)
def test_a_mistake_is_told_at_the_start(given: dict[str, Any], problem: str) -> None:
    with pytest.raises((Invalid, ValidationError), match=problem):
        UpstreamScorer(UpstreamSettings.model_validate({"url": "http://127.0.0.1:9", **given}))


async def test_an_answer_that_is_too_large_is_the_upstreams_fault(upstreams: Upstreams) -> None:
    upstreams.compressed = bytes(9 << 20)
    async with served(upstreams.app) as url, scoring(url, {"protocol": "openrlhf"}) as queue:
        (outcome,) = await ask(queue, item())
    assert outcome.status == "error" and "over 8388608 bytes" in (outcome.detail or "")


async def test_a_tensor_of_other_rows_than_responses_is_refused(upstreams: Upstreams) -> None:
    output = {"name": "logits", "shape": [6, 1], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}
    upstreams.app.post("/v2/models/a b/infer")(lambda: {"outputs": [output]})
    async with (
        served(upstreams.app) as url,
        scoring(url, {"protocol": "kserve", "model": "a b", "label": 0}) as queue,
    ):
        (outcome,) = await ask(queue, item())
    assert outcome.status == "error" and "of shape [6, 1] for 3 responses" in (outcome.detail or "")


async def test_noise_is_that_of_the_upstreams_version_although_nobody_asks_for_readiness(
    upstreams: Upstreams, tmp_path: Path
) -> None:
    """Under equal noise, the answers before and after a training would show the exact change of a score."""
    found = []
    async with served(upstreams.app) as url:
        limits = {"answers_dir": tmp_path / "answers", "score_noise": 1.0}
        tokens = tmp_path / "tokens.json"
        tokens.write_text(json.dumps([{"name": "router", "scope": "service", "sha256": hash_token(TOKEN)}]))
        options = {"upstream": "classify", "upstream_url": url, "tokens_file": tokens}
        for model in ("one", "two", "two"):
            upstreams.model = model
            async with service(RewardSettings(**options, **limits)) as http:
                found.append(await scores_of(http, group("1", RESPONSES)))
    assert found[0] != found[1] == found[2]


async def test_the_version_is_that_of_the_named_model_among_others(upstreams: Upstreams) -> None:
    async with served(upstreams.app) as url:
        protocol = {"protocol": "score", "model": "one"}
        settings = UpstreamSettings.model_validate({"protocol": protocol, "url": url})
        versions = []
        for change in ({}, {"others": 2}, {"root": "weights-2"}):
            for name, value in change.items():
                setattr(upstreams, name, value)
            scorer = UpstreamScorer(settings)
            assert await scorer.problem() is None
            versions.append(scorer.version)
            await scorer.close()
    assert versions[0] == versions[1] != versions[2]


async def test_limited_answers_of_a_judge_are_those_of_the_group(upstreams: Upstreams, tmp_path: Path) -> None:
    """A strength is one among some responses: an answer that is remembered from another group would be wrong here."""
    token_file = tmp_path / "tokens.json"
    token_file.write_text(json.dumps([{"name": "a", "scope": "service", "sha256": hash_token(TOKEN)}]))
    async with served(upstreams.app) as url:
        settings = RewardSettings(
            upstream="chat",
            upstream_url=url,
            upstream_model="judge",
            tokens_file=token_file,
            answers_dir=tmp_path / "answers",
            score_bits=6,
        )
        async with service(settings) as http:
            better, worse = [await scores_of(http, group("g", ["4", other])) for other in ("1", "9")]
    assert better[0] > better[1] and worse[0] < worse[1]
