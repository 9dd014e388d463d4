"""Reward service for tests: the real app with a function as its model, and reading of its metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from mor_core.auth import new_token
from mor_core.wire import ScoreResponse
from mor_reward.app import create_app
from mor_reward.config import RewardSettings

from tests.reward import reward_kit as kit

TOKEN = new_token()
VIEWER = new_token()
RED, BLUE = kit.draw("red", 11), kit.draw("blue", 12)
ANSWERS = ["It is red", "It is blue", "It is green"]


@asynccontextmanager
async def service(settings: RewardSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://reward", headers=headers) as http:
            yield http


def function_settings(settings: RewardSettings, tmp_path: Path, body: str, **more: Any) -> RewardSettings:
    """Make settings that serve ``def score(messages, responses, images)`` with ``body``."""
    file = tmp_path / "scorer.py"
    file.write_text(
        f"import time, math\nfrom pathlib import Path\n\n\ndef score(messages, responses, images):\n    {body}\n"
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
