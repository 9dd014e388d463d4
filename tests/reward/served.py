"""Reward service for tests: the real app with a function or a scorer of known speed as its model; its metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from fastapi import FastAPI
from mor_core.auth import new_token
from mor_core.wire import Card, ModelRef, ScoreResponse
from mor_reward.app import create_app
from mor_reward.backbones import Example, Scorer
from mor_reward.batcher import Batcher
from mor_reward.config import RewardSettings
from mor_reward.scoring_engine import ScoringEngine
from mor_reward.scoring_service import ScoringService
from torch import Tensor

from tests.reward import reward_kit as kit

TOKEN = new_token()
VIEWER = new_token()
RED, BLUE = kit.draw("red", 11), kit.draw("blue", 12)
ANSWERS = ["It is red", "It is blue", "It is green"]


@dataclass
class TimedScorer:
    """Scorer of 1 for each response, in a time that depends on the responses."""

    seconds: Callable[[list[str]], float]
    calls: list[str] = field(default_factory=list)
    """First response of each pass."""
    release: threading.Event | None = None
    """Event that each pass waits for, 20 s at most."""
    uses_pictures: bool = True

    def unscorable_reason(self, example: Example) -> str | None:
        return None

    def score(self, batch: Sequence[Example]) -> Tensor:
        responses = [example.response for example in batch]
        self.calls.append(responses[0])
        time.sleep(self.seconds(responses))
        if self.release is not None:
            self.release.wait(20)
        return torch.ones(len(batch))


def slow(seconds_a_response: float = 0.02) -> TimedScorer:
    return TimedScorer(lambda responses: seconds_a_response * len(responses))


def batched_app(settings: RewardSettings, scorer: Scorer) -> FastAPI:
    """Build the app with ``scorer`` as its trained model."""
    engine = ScoringEngine(scorer, 1.0, settings.batch_responses)
    queue = Batcher(
        engine, batch_responses=settings.batch_responses, queue_responses=settings.queue_responses, wait_s=0.003
    )
    card = Card(
        model=ModelRef(name="timed", version="1"), domains="", calibration=None, privacy=None, limits=settings.limits
    )
    return create_app(settings, ScoringService(queue, card, settings))


@asynccontextmanager
async def service(settings: RewardSettings, scorer: Scorer | None = None) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings) if scorer is None else batched_app(settings, scorer)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://reward", headers=headers) as http:
            yield http


def function_settings(settings: RewardSettings, tmp_path: Path, body: str, **more: Any) -> RewardSettings:
    """Make settings that serve ``def score(messages, responses, images)`` with ``body``."""
    file = tmp_path / "scorer.py"
    file.write_text(
        f"import time, math, sys\nfrom pathlib import Path\n\n\ndef score(messages, responses, images):\n    {body}\n"
    )
    changes = {"model_dir": None, "function": f"{file}:score", **more}
    return RewardSettings(**{**settings.model_dump(), **changes})


def scores(response: httpx.Response) -> list[list[float] | None]:
    assert response.status_code == 200, response.text
    parsed = ScoreResponse.model_validate_json(response.content)
    return [None if item.scores is None else list(item.scores) for item in parsed.items]


async def metric(http: httpx.AsyncClient, line: str) -> float:
    text = (await http.get("/metrics", headers={"Authorization": f"Bearer {VIEWER}"})).text
    return sum(float(row.rsplit(" ", 1)[1]) for row in text.splitlines() if row.startswith(line))
