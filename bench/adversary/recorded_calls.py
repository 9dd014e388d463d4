"""Calls that a client records while a run is served: live groups and honeypots, over HTTP from the real router.

Groups go the way of a run: published as they are sampled, step by step, and scored by the reward stage. The client
stores bodies, headers, arrival times and connections, and answers as an honest service does.

The traffic has the pattern of the demonstration's streams: the 16 groups of a step come within 0.2 s, and calls have
one to eight of them, because clients take time to score; then nothing comes for the rest of the step. Prompts are
shuffled anew in each epoch, and the policy answers anew each time. Two things differ: steps are shorter than the
demonstration's 2.2 s, and 97 % of the groups hold a repeated response (83 % in the demonstration).
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
from mor_router.objectives.objective_store import Anchor, ObjectiveStore, digest_of
from pydantic import SecretStr
from redis.asyncio import Redis

from adversary.recording_material import Question

sys.path.append(str(Path(__file__).parents[2]))

from tests.router.endpoints import TOKEN, Endpoint, Endpoints

_PORT = 6398
"""Port of the queue server; not the default one, which may be in use."""
_ADMIN = "the-bench-is-admin-here"
_OBJECTIVE = "helpful"
_SHARE = 0.1
"""Share of honeypots: twice the default, because the run is short."""
_RESERVE = 0.5
"""Share of the operator's questions that is held out: the most, for the same reason."""
_AUDITS = 0.05
"""Share of the live groups that are audited; refits sample the policy on their questions."""
_REFIT_STEPS = 10
"""Steps between online refits."""
_REFIT_QUESTIONS = 64
"""Questions of a refit: the default."""
_BURST = 16
"""Groups of one step."""
_TOGETHER = (1, 1, 1, 2, 2, 3, 4)
"""Groups whose last response ends in the same step of the engine; one of these numbers at random."""
_ENGINE_STEP_S = 0.02
"""Mean seconds until the next groups end."""
_SCORING_S = 0.03
"""Seconds in which the client scores a group; with its calls in flight, the groups of a step wait for each other."""
_PAUSE_S = (0.5, 1.2)
"""Shortest and longest seconds between the groups of two steps."""
_LIVE, _ANCHOR = "\u2002", "\u2003"
"""Spaces of equal length that end the responses of live groups and of anchors. They tell the bench which is which, and
are taken off what the client has recorded."""


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
    honeypots: tuple[bool, ...]
    """For each item, whether it is a honeypot."""


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
        await asyncio.sleep(_SCORING_S * (1 + len(seen["body"]["items"])))
        answer = await super().scores(request)
        seen["ended"] = time.monotonic()
        return answer


async def record(
    live: Sequence[Question], operators: Sequence[Question], uploaded: Sequence[Anchor], *, sampled: bool, steps: int
) -> list[RecordedCall]:
    """Serve ``steps`` steps of live groups; with ``sampled``, refits sample the policy before the run and during it.

    ``operators``: those of the live questions that the operator has anchors about; ``uploaded``: pairs about them.
    """
    with tempfile.TemporaryDirectory(prefix="mor-adversaries-") as name:
        folder = Path(name)
        command = [str(bundled_valkey.server_binary()), *bundled_valkey.arguments(_PORT, folder)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: ASYNC220 - once, before anything runs
        endpoints = Endpoints()
        try:
            await asyncio.sleep(1)
            return await _serve(folder, endpoints, live, operators, uploaded, sampled=sampled, steps=steps)
        finally:
            endpoints.stop()
            server.terminate()
            server.wait(timeout=10)


async def _serve(
    folder: Path,
    endpoints: Endpoints,
    live: Sequence[Question],
    operators: Sequence[Question],
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
        anchor_share=_SHARE,
        anchor_reserve=_RESERVE,
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
        given = {digest: content for question in operators for digest, content in question.images.items()}
        await store.put_anchors(_OBJECTIVE, [_marked(anchor) for anchor in uploaded], given)
        app.state.router.objectives.gate_resolver.invalidate()
        recorder.requests.clear()
        await _send(redis, live, steps, _Refits(store, operators) if sampled else None)
        await _drained(redis)
    return _calls(recorder.requests)


class _Refits:
    """Online refits, as far as they make anchors: samples of the policy with a label."""

    def __init__(self, store: ObjectiveStore, operators: Sequence[Question]) -> None:
        self._store = store
        self._operators = operators
        self._audited: dict[tuple[Message, ...], Question] = {}
        self._random = random.Random(1)

    def audit(self, question: Question) -> None:
        """Audit a live group with the set probability; its question is sampled from the next refit on."""
        if self._random.random() < _AUDITS:
            self._audited[question.messages] = question

    async def refit(self, progress: float) -> None:
        known = list({question.messages: question for question in (*self._operators, *self._audited.values())}.values())
        chosen = self._random.sample(known, min(_REFIT_QUESTIONS, len(known)))
        made = [self._anchor(question, progress) for question in chosen]
        images = {digest: content for question in chosen for digest, content in question.images.items()}
        await self._store.add_sampled(_OBJECTIVE, [anchor for anchor in made if anchor is not None], images)

    def _anchor(self, question: Question, progress: float) -> Anchor | None:
        """Make an anchor of a sample as an online refit does; responses that are equally good have no label."""
        sample = question.sample(progress, self._random)
        chosen, *others = sorted(set(sample), key=question.taste, reverse=True)
        if not others or question.taste(chosen) == question.taste(others[-1]):
            return None
        *others, rejected = others
        digest = digest_of(question.messages, chosen, rejected)
        return _marked(
            Anchor(
                id=digest[:12],
                digest=digest,
                messages=question.messages,
                chosen=chosen,
                rejected=rejected,
                domain=None,
                others=tuple(others),
                sample=sample,
                policy="run:1",
                live_question=question not in self._operators,
            )
        )


def _marked(anchor: Anchor) -> Anchor:
    others, sample = (tuple(text + _ANCHOR for text in texts) for texts in (anchor.others, anchor.sample))
    pair = {"chosen": anchor.chosen + _ANCHOR, "rejected": anchor.rejected + _ANCHOR}
    return anchor.model_copy(update={**pair, "others": others, "sample": sample})


async def _send(redis: Redis, live: Sequence[Question], steps: int, refits: _Refits | None) -> None:
    side, blobs, drafts = Streams(redis, "run", 4096), Blobs(redis, "run"), random.Random(0)
    order = [
        place for _ in range(1 + steps * _BURST // len(live)) for place in random.sample(range(len(live)), len(live))
    ]
    for step in range(steps):
        await announce(redis, "run", "model")  # as run control does while a run goes on
        await redis.delete(side.key("rewards"))  # no trainer takes them
        if refits and step % _REFIT_STEPS == 0:
            await refits.refit(step / steps)
        left = list(range(step * _BURST, (step + 1) * _BURST))
        while left:
            together = random.choice(_TOGETHER)
            for number in left[:together]:
                question = live[order[number]]
                responses = tuple(text + _LIVE for text in question.sample(step / steps, drafts))
                for digest, content in question.images.items():
                    assert await blobs.put(content, f"g{number}") == digest
                await side.publish("rollouts", _rollout(question, responses, f"g{number}"), timeout_s=30)
                if refits:
                    refits.audit(question)
            del left[:together]
            await asyncio.sleep(random.expovariate(1 / _ENGINE_STEP_S))
        await asyncio.sleep(random.uniform(*_PAUSE_S))


def _rollout(question: Question, responses: tuple[str, ...], group_id: str) -> RolloutRecord:
    prompt = PromptRecord(
        run="run",
        group_id=group_id,
        prompt_id=group_id,
        messages=question.messages,
        objective=_OBJECTIVE,
        sampling=Sampling(group_size=len(responses), max_tokens=24),
        weights=WeightsRef(version=1),
    )
    return RolloutRecord(
        run="run",
        group_id=group_id,
        trace=None,
        stamps=prompt.stamped("rollout"),
        prompt=prompt,
        responses=responses,
        finish_reasons=("stop",) * len(responses),
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


def _calls(requests: Sequence[Mapping[str, Any]]) -> list[RecordedCall]:
    """Join repetitions, and tell honeypots from live groups."""
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
                body={**own[0]["body"], "items": [_unmarked(item) for item in own[0]["body"]["items"]]},
                bytes=own[0]["bytes"],
                repeated=len(own) > 1,
                honeypots=tuple(item["responses"][0].endswith(_ANCHOR) for item in own[0]["body"]["items"]),
            )
            for own in found.values()
        ),
        key=lambda call: call.at,
    )


def _unmarked(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**item, "responses": [text.removesuffix(_LIVE).removesuffix(_ANCHOR) for text in item["responses"]]}


def item_images(item: Mapping[str, Any]) -> list[str]:
    """Return the hashes of the pictures that an item names."""
    contents = [message["content"] for message in item["messages"] if isinstance(message["content"], list)]
    return [
        part["image_url"]["url"].removeprefix("sha256:")
        for content in contents
        for part in content
        if part["type"] == "image_url"
    ]
