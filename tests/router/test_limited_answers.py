"""Clients that limit their answers: a spent budget is an absence, and scores that may not be copied are withheld."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from mor_core.auth import hash_token
from mor_reward.answers.answer_form import AnswerForm
from mor_reward.app import create_app
from mor_reward.config import RewardSettings
from mor_router.mathematics.drift_test import drift_result, fit_baseline
from numpy import ndarray

from tests.ports import free_port
from tests.router.conftest import TOKENS, Api
from tests.router.endpoints import TOKEN, Endpoints
from tests.router.test_scoring import line

pytestmark = pytest.mark.anyio

LIMITED = "limited"
FORMS = {
    "4 bits": AnswerForm(bits=4, centred=True),
    "2 bits": AnswerForm(bits=2, range=3.0, centred=True),
    "ranks": AnswerForm(ranks=True),
    "ranks of 3 bits": AnswerForm(ranks=True, bits=3),
    "noise": AnswerForm(noise=1.0),
}
_ALARM = np.log(100)
"""Evidence at which a client counts as drifted, with one false alarm in a hundred clients."""


@asynccontextmanager
async def reward_service(folder: Path, **limits: Any) -> AsyncIterator[str]:
    """Serve a function as a real reward service on loopback, and yield its address."""
    tokens = [{"name": "router", "scope": "service", "sha256": hash_token(TOKEN)}]
    (folder / "reward-tokens.json").write_text(json.dumps(tokens))
    (folder / "scorer.py").write_text(
        "def score(messages, responses, images):\n    return [len(r) for r in responses]\n"
    )
    settings = RewardSettings(
        function=f"{folder}/scorer.py:score",
        name=LIMITED,
        tokens_file=folder / "reward-tokens.json",
        answers_dir=folder / "answers",
        **limits,
    )
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, log_config=None, lifespan="on"))
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(60):
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving


async def enrol(api: Api, url: str) -> None:
    await api.ok(
        "POST", "/v1/clients", {"name": LIMITED, "url": url, "domains": "t", "token": TOKEN, "state": "active"}
    )


async def test_a_spent_budget_is_an_absence_and_no_failure(api: Api, endpoints: Endpoints, tmp_path: Path) -> None:
    await api.enrol(endpoints.endpoint("good"))
    async with reward_service(tmp_path, queries_per_day=4) as url:
        await enrol(api, url)  # asks about one group
        found = [await api.reward("a", "a good answer", text=f"Question {number}") for number in range(23)]
        statuses = [line(one, LIMITED)["status"] for one in found]
        assert statuses == ["ok"] * 3 + ["unscorable"] * 20
        assert [one["status"] for one in found] == ["ok"] * 23
        refused = found[-1]
        assert "used up" in line(refused, LIMITED)["detail"]
        assert (line(refused, "good")["weight"], line(refused, LIMITED)["weight"]) == (1, 0)
        again = await api.reward("a", "a good answer", text="Question 0")
        assert line(again, LIMITED)["status"] == "ok"
        client = await api.ok("GET", f"/v1/clients/{LIMITED}")
        assert (client["circuit"], client["client"]["state"]) == ("closed", "active")


async def test_a_group_that_every_client_refuses_for_its_budget_says_so(api: Api, tmp_path: Path) -> None:
    async with reward_service(tmp_path, queries_per_day=2) as url:
        await enrol(api, url)  # asks about one group
        assert (await api.reward("a", "a good answer", text="Question 1"))["status"] == "ok"
        refused = await api.reward("a", "a good answer", text="Question 2")
        assert (refused["status"], refused["rewards"]) == ("error", None)
        assert "used up; they are renewed at midnight UTC" in refused["detail"]


async def test_rounded_and_ranked_scores_are_fused(api: Api, endpoints: Endpoints, tmp_path: Path) -> None:
    await api.enrol(endpoints.endpoint("good"))
    async with reward_service(tmp_path, score_ranks=True) as url:
        await enrol(api, url)
        found = await api.reward("a", "abc", "ab")
        assert line(found, LIMITED)["raw"] == [-1, 1, 0]
        assert found["status"] == "ok"
        card = (await api.ok("GET", f"/v1/clients/{LIMITED}"))["client"]["card"]
        assert card["answers"]["ranks"] is True


async def test_single_scores_of_a_client_that_forbids_distillation_stay_in_the_router(
    api: Api, endpoints: Endpoints, tmp_path: Path
) -> None:
    await api.enrol(endpoints.endpoint("good"))
    item = {"item_id": "1", "messages": [{"role": "user", "content": "What?"}], "responses": ["a", "a good answer"]}
    async with reward_service(tmp_path, distillation="forbidden") as url:
        await enrol(api, url)
        for scope in ("service", "admin"):
            (found,) = (await api.ok("POST", "/v1/reward", {"items": [item]}, token=TOKENS[scope]))["items"]
            withheld, given = line(found, LIMITED), line(found, "good")
            for one in (withheld, given):  # rewards minus the others' share would be the withheld scores
                assert [one[name] for name in ("raw", "standardised", "calibrated")] == [None] * 3
                assert one["status"] == "ok" and one["weight"] > 0
            assert len(found["rewards"]) == 2
            await api.ok("PATCH", f"/v1/clients/{LIMITED}", {"asks": {"public_only": True}})
            (found,) = (await api.ok("POST", "/v1/reward", {"items": [item]}, token=TOKENS[scope]))["items"]
            assert len(line(found, "good")["raw"]) == 2, "where it has no part"
            await api.ok("PATCH", f"/v1/clients/{LIMITED}", {"asks": {}})


def differences(form: AnswerForm, random: np.random.Generator, size: int, count: int, better: float) -> ndarray:
    """Return the differences, chosen minus rejected, that a client answers for groups of ``size`` responses."""
    found = []
    for _ in range(count):
        scores = random.normal(0, 1.5, size)
        scores[0] += better
        answered = form(scores, random.standard_normal(size))
        found.append(answered[0] - answered[1])
    return np.array(found)


@pytest.mark.parametrize("name", FORMS)
def test_the_drift_test_holds_for_limited_answers(name: str) -> None:
    """Anchors of a fit are pairs, honeypots larger groups; ranks and centring must not make this look like drift."""
    for seed in range(30):
        random = np.random.default_rng(seed)
        baseline = fit_baseline(differences(FORMS[name], random, 2, 150, better=2.5), np.ones(150))
        honest = differences(FORMS[name], random, 8, 200, better=2.5)
        assert drift_result(baseline, honest, np.ones(200)).log_evidence < _ALARM
        turned = differences(FORMS[name], random, 8, 200, better=-2.5)
        assert drift_result(baseline, turned, np.ones(200)).log_evidence > _ALARM
