"""Rewards of the mixture for groups of one's own: SDK and ``mor reward``, on a real router and real endpoints."""

from __future__ import annotations

import asyncio
import io
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_client import Mor
from mor_client.config import CONFIG_VARIABLE
from mor_client.errors import NoReward, ServiceError
from mor_client.exit_codes import ExitCode
from mor_client.rewards import RewardGroup
from mor_core.errors import Invalid
from mor_core.images import sha256
from PIL import Image

from tests.client.installation import Installation
from tests.router.endpoints import Endpoint, html


def photograph(colour: str) -> Image.Image:
    return Image.effect_noise((64, 64), 50).convert("RGB") if colour == "noise" else Image.new("RGB", (64, 64), colour)


def test_groups_are_divided_by_number_and_keep_their_order(scorer: Mor, clinic: Endpoint) -> None:
    scorer.settings.reward_groups = 2
    groups = [RewardGroup.of(f"Question {n}?", [f"a {n}", f"b {9 - n}"], name=f"group {n}") for n in range(5)]
    found = scorer.rewards.score(groups)
    assert [result.item_id for result in found] == [f"group {n}" for n in range(5)]
    ordered = [rewards[0] < rewards[1] for rewards in (result.required() for result in found)]
    assert ordered == [n < 9 - n for n in range(5)]
    assert sorted(len(call["items"]) for call in clinic.calls) == [1, 2, 2]
    assert found[0].clients is None, "a scorer gets fused values alone"


def test_groups_are_divided_by_bytes(scorer: Mor, clinic: Endpoint) -> None:
    scorer.settings.reward_bytes = 1 << 16
    long = "word " * 8000
    scorer.rewards.score([RewardGroup.of(long, [f"a {n}", "b 0"]) for n in range(3)])
    assert [len(call["items"]) for call in clinic.calls] == [1, 1, 1]


@pytest.mark.anyio
async def test_pictures_are_sent_once_and_in_any_shape(scorer: Mor, clinic: Endpoint, tmp_path: Path) -> None:
    encoded = io.BytesIO()
    photograph("noise").save(encoded, "PNG")
    content = encoded.getvalue()
    (tmp_path / "picture.png").write_bytes(content)
    parts = [{"type": "text", "text": "Which?"}, {"type": "image"}]
    groups = [
        RewardGroup.of("Which?", ["a 1", "b 2"], images=[content]),
        RewardGroup.of([{"role": "user", "content": parts}], ["a 1", "b 2"], images=[tmp_path / "picture.png"]),
        RewardGroup.of("Which?", ["a 1", "b 2"], images=[photograph("red")]),
        RewardGroup.of("Which?", ["a 1", "b 2"], images=[{"bytes": content, "path": None}]),
    ]
    assert all(result.required() for result in await scorer.rewards.score_async(groups))
    assert [list(group.images) == [sha256(content)] for group in groups] == [True, True, False, True]
    sizes: list[int] = []
    transport = scorer.rewards._transport()
    transport._http.event_hooks["request"].append(lambda request: _note(request, sizes))
    scorer.rewards._transport = lambda: transport  # type: ignore[method-assign]
    await scorer.rewards.score_async(groups)
    assert sizes and max(sizes) < len(content), "the router has the pictures"


async def _note(request: httpx.Request, sizes: list[int]) -> None:
    sizes.append(len(request.content))


def test_failures_are_errors_and_never_0(scorer: Mor, mor: Installation, clinic: Endpoint) -> None:
    clinic.broken = html
    [found] = scorer.rewards.score([RewardGroup.of("What?", ["a 1", "b 2"], name="g7")])
    assert (found.status, found.rewards) == ("error", None)
    with pytest.raises(NoReward, match="'g7' has no reward"):
        found.required()
    clinic.broken = None
    with pytest.raises(ServiceError) as refused:
        scorer.rewards.route(RewardGroup.of("What?", ["a"]))
    assert refused.value.status_code == 403
    mor.use("admin")
    with Mor() as admin:
        weights = admin.rewards.route(RewardGroup.of("What?", ["a"], images=[photograph("blue")]))
        assert [(line.client, line.weight) for line in weights.clients] == [("clinic", 1.0)]


def test_a_router_that_is_away_is_an_error(mor: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, CONFIG_VARIABLE, str(mor.config))
    with Mor() as sdk:
        sdk.router.url = "http://127.0.0.1:9"
        with pytest.raises(ServiceError, match="no answer"):
            sdk.rewards.score([RewardGroup.of("What?", ["a", "b"])])


def test_an_answer_that_does_not_come_in_time_is_an_error(scorer: Mor, clinic: Endpoint) -> None:
    scorer.settings.reward_timeout_s = 0.2
    clinic.delay_s = 2
    with pytest.raises(ServiceError, match="MOR_REWARD_TIMEOUT_S"):
        scorer.rewards.score([RewardGroup.of("What?", ["a 1", "b 2"])])


@pytest.mark.anyio
async def test_a_call_works_where_an_event_loop_runs(scorer: Mor, clinic: Endpoint) -> None:
    """As in a notebook: the blocking form from a thread that has a loop."""
    [found] = scorer.rewards.score([RewardGroup.of("What?", ["a 1", "b 2"])])
    again, _ = await asyncio.gather(
        scorer.rewards.score_async([RewardGroup.of("What?", ["a 1", "b 2"])]),
        scorer.rewards.score_async([RewardGroup.of("And?", ["a 1", "b 2"])]),
    )
    assert found.required()[0] < found.required()[1] and again[0].status == "ok"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"prompt": "", "responses": ["a"]}, "says and shows nothing"),
        ({"prompt": "What?", "responses": []}, "responses"),
        ({"prompt": "What?", "responses": [7]}, "got int"),
        ({"prompt": "What?", "responses": ["a"], "images": ["missing.png"]}, "cannot be read"),
        ({"prompt": "What?", "responses": ["a"], "images": [__file__]}, "cannot be read"),
        ({"prompt": "What?", "responses": ["a"], "images": ["/dev/zero"]}, "is no regular file"),
        ({"prompt": "What?", "responses": ["a"], "images": [1.5]}, "got float"),
        ({"prompt": "What?", "responses": ["a"], "images": ["https://host/a.png"]}, "not fetched"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(Invalid, match=problem):
        RewardGroup.of(**arguments)


def test_a_file_of_groups(mor: Installation, clinic: Endpoint, tmp_path: Path) -> None:
    mor.use("scorer")
    photograph("green").save(tmp_path / "green.png")
    rows = [
        {"id": "first", "prompt": "Which colour?", "images": ["green.png"], "responses": ["red 1", "green 9"]},
        {
            "prompt": [{"role": "user", "content": "What?"}],
            "responses": [{"role": "assistant", "content": "a 2"}, "b 1"],
        },
    ]
    file = tmp_path / "groups.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    first, second = mor.json("reward", str(file))
    assert (first["item_id"], second["item_id"]) == ("first", "line-2")
    assert first["rewards"][0] < first["rewards"][1] and second["rewards"][0] > second["rewards"][1]
    assert "first" in mor.ok("reward", str(file))
    clinic.broken = html
    failed = mor.mor("reward", str(file))
    assert failed.exit_code == ExitCode.refused and "2 of 2 groups have no reward" in failed.output
    file.write_text(json.dumps(rows[0]) + "\n" + json.dumps({"prompt": "What?", "responses": "a"}))
    wrong = mor.mor("reward", str(file))
    assert wrong.exit_code == ExitCode.usage and "groups.jsonl:2" in wrong.output.replace("\n", "")
