"""Reward service with limits on its answers: the real app, with a function as its model and two callers."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from mor_core.auth import hash_token, new_token
from mor_core.images import sha256
from mor_core.wire import ItemScores, ScoreResponse
from mor_reward.config import RewardSettings

from tests.reward import reward_kit as kit
from tests.reward.served import TOKEN, VIEWER

OTHER = new_token()
"""Token of another router."""
_SCORE = "return [len(r) / 7 + 0.37 * r.count('e') for r in responses]"


def limited(folder: Path, **limits: Any) -> RewardSettings:
    """Make settings of a service that scores by the letters of a response."""
    tokens = [{"name": name, "scope": "service", "sha256": hash_token(t)} for name, t in (("a", TOKEN), ("b", OTHER))]
    tokens.append({"name": "grafana", "scope": "viewer", "sha256": hash_token(VIEWER)})
    (folder / "tokens.json").write_text(json.dumps(tokens))
    (folder / "scorer.py").write_text(f"def score(messages, responses, images):\n    {_SCORE}\n")
    given = {"answers_dir": folder / "answers", **limits}
    return RewardSettings(function=f"{folder}/scorer.py:score", tokens_file=folder / "tokens.json", **given)


def group(name: str, responses: Sequence[str], question: str = "What?", picture: int | None = None) -> dict[str, Any]:
    """Make an item; ``picture``: seed of its picture."""
    text = {"type": "text", "text": question}
    content: Any = [text]
    if picture is not None:
        digest = sha256(kit.draw("red", picture))
        content = [{"type": "image_url", "image_url": {"url": f"sha256:{digest}"}}, text]
    return {"item_id": name, "messages": [{"role": "user", "content": content}], "responses": list(responses)}


async def ask(http: httpx.AsyncClient, *items: dict[str, Any], token: str = TOKEN) -> list[ItemScores]:
    """Ask for the scores of items."""
    drawn = [kit.draw("red", seed) for seed in range(8)]
    pictures = {sha256(content): base64.b64encode(content).decode() for content in drawn}
    named = {digest: content for digest, content in pictures.items() if digest in json.dumps(items)}
    body = {"contract": "mor.reward/1", "items": list(items), "images": named}
    response = await http.post("/v1/score", json=body, headers={"Authorization": f"Bearer {token}"})
    assert response.status_code == 200, response.text
    return list(ScoreResponse.model_validate_json(response.content).items)


async def scores(http: httpx.AsyncClient, item: dict[str, Any], token: str = TOKEN) -> list[float]:
    """Ask for the scores of one item, which must be scored."""
    answer = (await ask(http, item, token=token))[0]
    assert answer.scores is not None, answer.detail
    return list(answer.scores)


async def statuses(http: httpx.AsyncClient, *items: dict[str, Any], token: str = TOKEN) -> list[str]:
    return [answer.status for answer in await ask(http, *items, token=token)]
