"""The whole service: a tied checkpoint, vLLM with adapters, a real stream server, real HTTP for weights."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mor_core.auth import hash_token
from mor_core.run_announcements import announce
from mor_core.settings import StreamSettings
from mor_core.streams import connect
from mor_core.wire import WeightsRef
from mor_rollout.app import create_app
from mor_rollout.engines.protocol import SwapFailed
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.rollout.conftest import settings_for
from tests.rollout.publisher import Publisher
from tests.rollout.reference import Reference, base_tensors, make_adapter, moved, picture
from tests.rollout.run import Run, worst
from tests.tiny_models import build_tiny_vlm

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
AGREE = 1e-4
"""Largest difference of log-probabilities in float32 that rounding explains, nats."""
SERVICE = {"Authorization": "Bearer service-token"}
VIEWER = {"Authorization": "Bearer viewer-token"}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_vlm(tmp_path_factory.mktemp("tied") / "smolvlm", tied=True, kind="smolvlm")


@pytest.fixture(scope="module")
async def app(tied: Path, tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> AsyncIterator[FastAPI]:
    folder = tmp_path_factory.mktemp("service")
    tokens = [
        {"name": scope, "scope": scope, "sha256": hash_token(f"{scope}-token")} for scope in ("service", "viewer")
    ]
    (folder / "tokens.json").write_text(json.dumps(tokens))
    settings = settings_for(
        tied,
        folder,
        lora_max_rank=8,
        max_chats=2,
        watch_interval_s=0.1,
        redis_url=redis_url,
        tokens_file=folder / "tokens.json",
    )
    app = create_app(settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        early = await client.get("/readyz")
        assert early.status_code == 503
        assert "starting" in early.json()["missing"]["engine"]
        refused = await client.post("/v1/chat/completions", json=question(), headers=SERVICE)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        deadline = time.monotonic() + 120
        while (ready := await client.get("/readyz")).status_code != 200:
            assert app.state.service.failure is None, app.state.service.failure
            assert time.monotonic() < deadline, ready.text
            await asyncio.sleep(0.1)
        yield app


async def test_an_engine_starts_while_the_queue_server_is_away(tied: Path, tmp_path: Path) -> None:
    """``/startupz`` says so, so that no probe ends an engine whose start took minutes; ``/readyz`` waits for Redis."""
    settings = settings_for(tied, tmp_path, backend="transformers", self_test=False, redis_url="redis://127.0.0.1:1/0")
    app = create_app(settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        early = await client.get("/startupz")
        assert early.status_code == 503
        assert "starting" in early.json()["missing"]["engine"]
        deadline = time.monotonic() + 120
        while (await client.get("/startupz")).status_code != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert (await client.get("/healthz")).status_code == 200
        reply = await client.get("/readyz")
        assert reply.status_code == 503
        assert reply.json()["missing"].keys() == {"streams"}


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rollout", timeout=60)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.fixture(scope="module")
def reference(tied: Path) -> Reference:
    return Reference(tied)


@pytest.fixture
def publisher(tmp_path: Path, tied: Path) -> Iterator[Publisher]:
    publisher = Publisher(tmp_path / "published", tied)
    yield publisher
    publisher.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(StreamSettings(redis_url=SecretStr(redis_url)))
    yield client
    await client.aclose()


@pytest.fixture
async def run(app: FastAPI, redis: Redis, run_name: str, tied: Path) -> Run:
    await announce(redis, run_name, str(tied))
    return Run(redis, run_name)


async def test_groups_are_sampled_from_the_requested_version(
    app: FastAPI, run: Run, publisher: Publisher, reference: Reference, tied: Path, client: httpx.AsyncClient
) -> None:
    for version in (1, 2):
        tensors = moved(base_tensors(tied), version)
        ref = publisher.publish(run.name, version, tensors)
        reference.use(tensors)
        sent = {f"g{10 * version + number}" for number in range(6)}
        for group in sorted(sent):
            await run.issue(group, ref)
        rollouts = await run.rollouts(6)
        assert set(rollouts) == sent
        for rollout in rollouts.values():
            assert rollout.weights_version == version
            assert (len(rollout.responses), rollout.image_tokens) == (4, 4)
            assert rollout.pixels is not None
            assert rollout.stamps["rollout"] >= rollout.stamps["trainer"]
            assert await worst(run, rollout, reference) < AGREE
    status = (await client.get("/v1/status", headers=VIEWER)).json()
    assert (status["run"], status["weights_version"], status["weights"]["unverified"]) == (run.name, 2, 0)
    assert status["last_swap"]["swap_s"] < 1
    assert status["tokens_per_second"] > 0
    text = (await client.get("/metrics", headers=VIEWER)).text
    assert "mor_rollout_swap_seconds_count" in text
    assert "mor_rollout_weights_version 2.0" in text


async def test_the_same_record_gives_the_same_tokens(run: Run, publisher: Publisher, tied: Path) -> None:
    ref = publisher.publish(run.name, 1, moved(base_tensors(tied), 1))
    blocks = []
    for _ in range(2):
        await run.issue("g1", ref)
        blocks.append(await run.tokens((await run.rollouts(1))["g1"]))
    assert blocks[0].response_token_ids == blocks[1].response_token_ids
    assert len(set(blocks[0].response_token_ids)) == 4


async def test_adapters_are_hot_loaded(
    app: FastAPI, run: Run, publisher: Publisher, reference: Reference, tied: Path, tmp_path: Path
) -> None:
    reference.use({})
    for version in (1, 2):
        adapter = make_adapter(tied, tmp_path / f"adapter{version}", version)
        await run.issue("g1", publisher.publish_adapter(run.name, version, adapter))
        rollout = (await run.rollouts(1))["g1"]
        assert rollout.weights_version == version
        assert await worst(run, rollout, reference) > 1e-3
        assert await worst(run, rollout, reference.adapted(adapter)) < AGREE
        read_back = app.state.service.swapper.read_back
        of_adapter = 2 * 2 * 3  # factors, layers, adapted modules in each
        assert (read_back.version, read_back.unverified) == (version, 0)
        assert read_back.verified == len(base_tensors(tied)) + of_adapter
    tensors = moved(base_tensors(tied), 3)
    await run.issue("g2", publisher.publish(run.name, 3, tensors))
    reference.use(tensors)
    assert await worst(run, (await run.rollouts(1))["g2"], reference) < AGREE


async def test_an_adapter_that_the_engine_did_not_load_is_noticed(
    app: FastAPI, run: Run, publisher: Publisher, tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = app.state.service
    first, second = (
        publisher.publish_adapter(run.name, version, make_adapter(tied, tmp_path / f"adapter{version}", version))
        for version in (1, 2)
    )
    async with service.swapper.sampling(run.name, first):
        pass

    async def ignore(_: object) -> bool:
        return True

    monkeypatch.setattr(service.engine._engine, "add_lora", ignore)
    with pytest.raises(SwapFailed, match=r"4 layers do not compute with the adapter they were given, .*qkv_proj"):
        async with service.swapper.sampling(run.name, second):
            raise AssertionError("must not be sampled")
    assert service.swapper.version == 1
    assert service.swapper.failure is None


async def test_an_adapter_of_the_vision_tower_is_refused(
    run: Run, publisher: Publisher, tied: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tied, tmp_path / "adapter", 1, r".*vision_model.*(q_proj|v_proj)")
    await run.issue("g1", publisher.publish_adapter(run.name, 1, adapter))
    dead = await run.dead_letter()
    assert "outside the language model" in dead.reason
    assert "publish full weights" in dead.reason


async def test_groups_that_cannot_be_sampled_are_given_up_with_the_reason(
    run: Run, publisher: Publisher, tied: Path
) -> None:
    ref = publisher.publish(run.name, 1, {})
    await run.issue("g1", ref, image=picture(999))
    missing = await run.dead_letter()
    assert (missing.group_id, missing.stage, missing.attempts) == ("g1", "rollout", 1)
    assert "is gone; the trainer issues its group again" in missing.reason
    await run.issue("g2", ref, max_tokens=500)
    assert "raise MOR_MAX_MODEL_LEN or sample fewer" in (await run.dead_letter()).reason
    await run.blobs.put(b"no picture", "g3")
    await run.issue("g3", ref, image=b"no picture")
    assert "not a readable image" in (await run.dead_letter()).reason
    await run.issue("g4", WeightsRef(version=7))
    unpublished = await run.dead_letter()
    assert "answered 404; check that the version is published" in unpublished.reason
    assert unpublished.attempts == 3
    await run.issue("g5", ref)
    assert (await run.rollouts(1))["g5"].weights_version == 1, "the service goes on"


async def test_a_run_of_another_model_waits_for_a_service_that_has_it(
    app: FastAPI, redis: Redis, run_name: str, publisher: Publisher
) -> None:
    await announce(redis, run_name, "/models/another")
    run = Run(redis, run_name)
    await run.issue("g1", publisher.publish(run_name, 1, {}))
    [wait] = await run.waits()
    assert (wait.stage, wait.groups) == ("rollout", 0)
    assert "trains '/models/another', this rollout service has" in wait.missing["rollout service"]
    assert (await run.streams.depth("prompts"), await run.streams.depth("dead")) == (1, 0)


async def test_groups_of_two_runs_are_not_mixed(
    redis: Redis, run: Run, publisher: Publisher, reference: Reference, tied: Path
) -> None:
    other = Run(redis, run.name + "-other")
    await announce(redis, other.name, str(tied))
    tensors = [moved(base_tensors(tied), 1), moved(base_tensors(tied), 2)]
    refs = [publisher.publish(each.name, 1, values) for each, values in zip((run, other), tensors, strict=True)]
    for group in range(4):
        await run.issue(f"g{group}", refs[0])
        await other.issue(f"g{group}", refs[1])
    for each, values in zip((run, other), tensors, strict=True):
        rollouts = await each.rollouts(4)
        reference.use(values)
        assert max([await worst(each, rollout, reference) for rollout in rollouts.values()]) < AGREE


def question(**changes: Any) -> dict[str, Any]:
    uri = "data:image/png;base64," + base64.b64encode(picture(1)).decode()
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "What is it?"}]
    return {"model": "policy", "messages": [{"role": "user", "content": parts}], "max_tokens": 12, "seed": 5, **changes}


async def test_chat_completion(client: httpx.AsyncClient) -> None:
    body = question(n=2, logprobs=True)
    first, again = [(await client.post("/v1/chat/completions", json=body, headers=SERVICE)).json() for _ in range(2)]
    assert first["choices"] == again["choices"]
    assert first["object"] == "chat.completion"
    assert [choice["index"] for choice in first["choices"]] == [0, 1]
    assert first["choices"][0]["message"]["content"] != first["choices"][1]["message"]["content"]
    entries = [entry for choice in first["choices"] for entry in choice["logprobs"]["content"]]
    assert len(entries) == first["usage"]["completion_tokens"]
    assert all(entry["logprob"] < 0 for entry in entries)
    other = (await client.post("/v1/chat/completions", json={**body, "seed": 6}, headers=SERVICE)).json()
    assert other["choices"] != first["choices"]


async def test_streamed_chat_has_the_same_text(client: httpx.AsyncClient) -> None:
    whole = (await client.post("/v1/chat/completions", json=question(), headers=SERVICE)).json()
    body = question(stream=True, stream_options={"include_usage": True})
    async with client.stream("POST", "/v1/chat/completions", json=body, headers=SERVICE) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    chunks = [json.loads(line) for line in data[:-1]]
    deltas = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert deltas[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]


async def test_a_stop_text_ends_the_response_before_it(client: httpx.AsyncClient) -> None:
    whole = (await client.post("/v1/chat/completions", json=question(max_tokens=40), headers=SERVICE)).json()
    text = whole["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    body = question(max_tokens=40, stop=stop)
    cut = (await client.post("/v1/chat/completions", json=body, headers=SERVICE)).json()
    assert cut["choices"][0]["message"]["content"] == text[: text.index(stop)]
    assert cut["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"frequency_penalty": 1}, 422, "frequency_penalty"),
        ({"model": "gpt"}, 404, "is not served; use 'policy'"),
        ({"n": 99}, 422, "at most 16 responses"),
        ({"max_tokens": 1000}, 422, "leaves"),
        ({"stop": ["a"] * 5}, 422, "give at most four"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]},
         422, "URLs are not fetched"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,%%"}}]}]},
         422, "neither a base64 data URI nor base64"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "aGVsbG8="}}]}]},
         422, "not a readable image"),
    ],
)  # fmt: skip
async def test_chat_refuses_unsupported_requests(
    client: httpx.AsyncClient, changes: dict[str, Any], status: int, message: str
) -> None:
    answer = await client.post("/v1/chat/completions", json=question(**changes), headers=SERVICE)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert message in answer.json()["detail"]


async def test_chat_is_bounded(client: httpx.AsyncClient) -> None:
    body = question(max_tokens=150, temperature=2.0, n=4)
    answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body, headers=SERVICE) for _ in range(6)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200, 200, 503, 503, 503, 503]


async def test_tokens_and_scopes(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/status")).status_code == 401
    assert (await client.post("/v1/chat/completions", json=question(), headers=VIEWER)).status_code == 403
    models = (await client.get("/v1/models", headers=VIEWER)).json()
    assert models["data"][0]["id"] == "policy"
