"""Calls that a client records while a run is served: live ones and honeypots, over HTTP from the real router.

Groups go the way of a run: published as they are sampled, step by step, and scored by the reward stage. The client
stores bodies, headers, arrival times and connections, and answers as an honest service does.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.fernet import Fernet
from fastapi import Request
from fastapi.responses import Response
from mor_core import bundled_valkey
from mor_core.auth import hash_token
from mor_core.blobs import Blobs
from mor_core.run_announcements import announce
from mor_core.streams import Streams
from mor_core.wire import Message, PromptRecord, RolloutRecord, Sampling, WeightsRef
from mor_router.app import create_app
from mor_router.config import RouterSettings
from mor_router.objectives.objective_store import Anchor, digest_of
from pydantic import SecretStr
from redis.asyncio import Redis

sys.path.append(str(Path(__file__).parents[2]))

from tests.router.endpoints import TOKEN, Endpoint, Endpoints

_PORT = 6398
"""Port of the queue server; not the default one, which may be in use."""
_ADMIN = "the-bench-is-admin-here"
_OBJECTIVE = "helpful"
_SHARE = 0.1
"""Share of honeypots: twice the default, and the most of the anchors is held out, because the run is short."""
_BURST = 16
"""Groups of one step."""
_STEP_S = 0.7
"""Mean seconds of a step, a tiny model's: groups are sampled one after the other in its first half."""
_REFIT_SAMPLES = 8
"""Responses that a refit samples for a question: a group's size, as docs/client-lifecycle.md advises."""


@dataclass(frozen=True)
class Question:
    """A question with a policy's responses to it."""

    messages: tuple[Message, ...]
    images: Mapping[str, bytes]
    responses: tuple[str, ...]


@dataclass(frozen=True)
class RecordedCall:
    """One call as the client sees it; a repetition with pictures belongs to it."""

    at: float
    """Seconds since the first call."""
    ended: float
    port: int
    """Port of the connection."""
    headers: tuple[tuple[str, str], ...]
    body: Mapping[str, Any]
    """First request."""
    bytes: int
    repeated: bool
    """True if it was repeated with pictures that the client lacked."""
    honeypot: bool


class _Recorder(Endpoint):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.requests: list[dict[str, Any]] = []

    async def scores(self, request: Request) -> Response:
        content = await request.body()
        seen = {
            "at": time.monotonic(),
            "port": request.client.port if request.client else 0,
            "headers": tuple(request.headers.items()),
            "body": json.loads(content),
            "bytes": len(content),
        }
        self.requests.append(seen)
        answer = await super().scores(request)
        seen["ended"] = time.monotonic()
        return answer


async def record(
    live: Sequence[Question], anchors: Sequence[Question], uploaded: Sequence[Anchor], *, sampled: bool, steps: int
) -> list[RecordedCall]:
    """Serve ``steps`` bursts of live groups; with ``sampled``, labelled samples of the policy are anchors too.

    ``anchors`` are questions on other pictures than the live ones; ``uploaded`` are the operator's pairs.
    """
    with tempfile.TemporaryDirectory(prefix="mor-adversaries-") as name:
        folder = Path(name)
        command = [str(bundled_valkey.server_binary()), *bundled_valkey.arguments(_PORT, folder)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: ASYNC220 - once, before anything runs
        endpoints = Endpoints()
        try:
            await asyncio.sleep(1)
            return await _serve(folder, endpoints, live, anchors, uploaded, sampled=sampled, steps=steps)
        finally:
            endpoints.stop()
            server.terminate()
            server.wait(timeout=10)


async def _serve(
    folder: Path,
    endpoints: Endpoints,
    live: Sequence[Question],
    anchors: Sequence[Question],
    uploaded: Sequence[Anchor],
    *,
    sampled: bool,
    steps: int,
) -> list[RecordedCall]:
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps([{"name": "bench", "scope": "admin", "sha256": hash_token(_ADMIN)}]))
    url = f"redis://127.0.0.1:{_PORT}/0"
    settings = RouterSettings(
        redis_url=SecretStr(url),
        tokens_file=tokens,
        secret_key=SecretStr(Fernet.generate_key().decode()),
        audit_log=folder / "audit.jsonl",
        allow_loopback=True,
        worker=True,
        batch_groups=4,
        anchor_share=_SHARE,
        anchor_reserve=0.5,
        audit_share=0.0,
    )
    recorder = _Recorder(f"{endpoints.address}/recorder")
    endpoints.app.add_api_route("/recorder/v1/card", recorder.card, methods=["GET"], response_model=None)
    endpoints.app.add_api_route("/recorder/v1/score", recorder.scores, methods=["POST"], response_model=None)
    app = create_app(settings)
    headers = {"Authorization": f"Bearer {_ADMIN}"}
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://router", headers=headers, timeout=600) as http,
        Redis.from_url(url) as redis,
    ):
        body = {"name": "recorder", "url": recorder.url, "domains": "tests", "token": TOKEN, "state": "active"}
        (await http.post("/v1/clients", json=body)).raise_for_status()
        (await http.post("/v1/objectives", json={"name": _OBJECTIVE, "text": "Answer."})).raise_for_status()
        store = app.state.router.objectives.store
        given = {digest: content for question in anchors for digest, content in question.images.items()}
        await store.put_anchors(_OBJECTIVE, uploaded, given)
        if sampled:
            await store.add_sampled(_OBJECTIVE, [_sampled(question) for question in anchors], given)
        app.state.router.objectives.gate_resolver.invalidate()
        recorder.requests.clear()
        await _send(redis, live, steps)
        await _drained(redis)
    marks = {digest for question in anchors for digest in question.images}
    return _calls(recorder.requests, marks)


def _sampled(question: Question) -> Anchor:
    """Make an anchor of a question as an online refit does."""
    texts = list(dict.fromkeys(question.responses[:_REFIT_SAMPLES]))
    texts += [text for text in dict.fromkeys(question.responses) if text not in texts][: max(0, 2 - len(texts))]
    chosen, rejected, *others = texts
    return Anchor(
        id=digest_of(question.messages, chosen, rejected)[:12],
        digest=digest_of(question.messages, chosen, rejected),
        messages=question.messages,
        chosen=chosen,
        rejected=rejected,
        domain=None,
        others=tuple(others),
        policy="run:1",
    )


async def _send(redis: Redis, live: Sequence[Question], steps: int) -> None:
    side, blobs = Streams(redis, "run", 4096), Blobs(redis, "run")
    order = [
        place for _ in range(1 + steps * _BURST // len(live)) for place in random.sample(range(len(live)), len(live))
    ]
    for step in range(steps):
        await announce(redis, "run", "model")  # as run control does while a run goes on
        await redis.delete(side.key("rewards"))  # no trainer takes them
        for number in range(step * _BURST, (step + 1) * _BURST):
            question = live[order[number]]
            for digest, content in question.images.items():
                assert await blobs.put(content, f"g{number}") == digest
            await side.publish("rollouts", _rollout(question, f"g{number}"), timeout_s=30)
            await asyncio.sleep(random.expovariate(2 * _BURST / _STEP_S))
        await asyncio.sleep(random.uniform(0.2, 0.8) * _STEP_S)


def _rollout(question: Question, group_id: str) -> RolloutRecord:
    prompt = PromptRecord(
        run="run",
        group_id=group_id,
        prompt_id=group_id,
        messages=question.messages,
        objective=_OBJECTIVE,
        sampling=Sampling(group_size=len(question.responses), max_tokens=24),
        weights=WeightsRef(version=1, url="http://127.0.0.1/v1/runs/run/weights/1"),
    )
    return RolloutRecord(
        run="run",
        group_id=group_id,
        trace=None,
        stamps=prompt.stamped("rollout"),
        prompt=prompt,
        responses=question.responses,
        finish_reasons=("stop",) * len(question.responses),
        tokens="0" * 64,
        weights_version=1,
        image_tokens=1,
        pixels=None,
    )


async def _drained(redis: Redis) -> None:
    side = Streams(redis, "run", 4096)
    async with asyncio.timeout(600):
        while await side.depth("rollouts"):
            await announce(redis, "run", "model")
            await redis.delete(side.key("rewards"))
            await asyncio.sleep(0.2)


def _calls(requests: Sequence[Mapping[str, Any]], marks: set[str]) -> list[RecordedCall]:
    """Join repetitions, and mark the calls about anchors' pictures."""
    found: dict[frozenset[str], list[Mapping[str, Any]]] = {}
    for request in requests:
        found.setdefault(frozenset(item["item_id"] for item in request["body"]["items"]), []).append(request)
    start = min(request["at"] for request in requests)
    return sorted(
        (
            RecordedCall(
                at=own[0]["at"] - start,
                ended=own[-1].get("ended", own[-1]["at"]) - start,
                port=own[0]["port"],
                headers=own[0]["headers"],
                body=own[0]["body"],
                bytes=own[0]["bytes"],
                repeated=len(own) > 1,
                honeypot=bool(_images(own[0]["body"]) & marks),
            )
            for own in found.values()
        ),
        key=lambda call: call.at,
    )


def _images(body: Mapping[str, Any]) -> set[str]:
    return {digest for item in body["items"] for digest in item_images(item)}


def item_images(item: Mapping[str, Any]) -> list[str]:
    """Return the hashes of the pictures that an item names."""
    contents = [message["content"] for message in item["messages"] if isinstance(message["content"], list)]
    return [
        part["image_url"]["url"].removeprefix("sha256:")
        for content in contents
        for part in content
        if part["type"] == "image_url"
    ]
