"""Online refit: the policy is sampled, a checker or judge labels its responses, and a gate is fitted on them."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mor_core.wire import Message
from mor_router.learning.labels import ordered_pairs
from mor_router.mathematics.density import LIMIT, effective_share, importance_weights, thin
from pydantic import SecretStr

from tests.router.conftest import Api, Start, eventually
from tests.router.endpoints import POLICY_TOKEN, TOKEN, Chat, Endpoints, quality, words
from tests.router.planted import jsonl, rows
from tests.router.test_objectives import objective, specialists, upload

pytestmark = pytest.mark.anyio

_REFIT = "/v1/objectives/helpful/refit"
_LABELLER = "/v1/objectives/helpful/labeller"


def drafts(endpoints: Endpoints) -> Chat:
    """A policy whose responses all differ."""
    turn = itertools.count()
    return endpoints.chat(lambda body: [f"draft {next(turn) * 37 % 100 / 25 - 2:.2f}" for _ in range(body["n"])])


async def ready(api: Api, endpoints: Endpoints) -> dict[str, Any]:
    await specialists(api, endpoints)
    await objective(api)
    gate = await api.ok("POST", "/v1/objectives/helpful/fit")
    assert isinstance(gate, dict)
    return gate


@pytest.fixture
def checker_package(tmp_path: Path) -> Iterator[None]:
    """An installed distribution with a checker that is honest and one that raises."""
    (tmp_path / "gold_checks.py").write_text(
        "def gold(messages, responses, images):\n"
        "    assert all(isinstance(content, bytes) for content in images.values())\n"
        "    return [float(text.split()[1]) for text in responses]\n"
        "def broken(messages, responses, images):\n    raise RuntimeError('no gold today')\n"
        "def odd(messages, responses, images):\n"
        "    return {'nothing': None, 'texts': ['a', 'b'], 'complex': [1j, 2], 'huge': [10**400, 1], 'none': [1]}"
        ".get(responses[0], [2, 1])\n"
    )
    folder = tmp_path / "gold_checks-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: gold-checks\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(
        "[mor_router.checkers]\ngold = gold_checks:gold\nbroken = gold_checks:broken\nodd = gold_checks:odd\n"
    )
    sys.path.insert(0, str(tmp_path))
    yield
    sys.path.remove(str(tmp_path))
    sys.modules.pop("gold_checks", None)


def settings_for(policy: Chat, **more: Any) -> dict[str, Any]:
    return {"policy_url": policy.url, "service_token": SecretStr(POLICY_TOKEN), "refit_questions": 16, **more}


async def test_samples_that_a_checker_endpoint_labelled_join_the_anchors(start: Start, endpoints: Endpoints) -> None:
    policy, checker = drafts(endpoints), endpoints.endpoint("checker")
    async with start(**settings_for(policy)) as api:
        first = await ready(api, endpoints)
        shown = await api.ok("PUT", _LABELLER, {"kind": "checker", "url": checker.url, "token": TOKEN})
        assert TOKEN not in json.dumps(shown)
        assert TOKEN.encode() not in await api.router.resources.redis.hget("mor:{router}:labellers", "helpful")
        second = await api.ok("POST", _REFIT)
        assert second["refitted"] == {
            "policy": "run-1:7", "questions": 16, "labelled": 16, "dropped": {}, "effective_share": None
        }  # fmt: skip
        assert (first["refitted"], first["report"]["pairs"], second["report"]["pairs"]) == (None, 63, 79)
        assert all(call["n"] == 4 for call in policy.calls)
        assert policy.calls[0]["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
        sampled = [
            anchor for anchor in await api.router.objectives.store.anchors("helpful") if anchor.policy == "run-1:7"
        ]
        assert len(sampled) == 16
        for anchor in sampled:
            assert len(anchor.others) == 2
            assert {*anchor.sample} == {anchor.chosen, anchor.rejected, *anchor.others}
            assert len(anchor.sample) == 4
            assert not anchor.live_question
            assert all(quality(anchor.rejected) <= quality(other) <= quality(anchor.chosen) for other in anchor.others)
        assert (await api.reward("answer 1", "answer 2", objective="helpful"))["gate_version"] == second["version"]
        await api.ok("POST", "/v1/objectives/helpful/gates/rollback")
        assert (await api.reward("answer 1", "answer 2", objective="helpful"))["gate_version"] == first["version"]
        assert (await upload(api, jsonl(rows(63)))).status_code == 200
        assert (
            len(await api.router.objectives.store.anchors("helpful")) == 63
        )  # pairs of the old anchors' questions went


async def test_new_answers_to_the_question_of_an_audited_group_are_never_shown_at_a_fit(
    start: Start, endpoints: Endpoints
) -> None:
    """They are for honeypots: at a fit, the question would reveal which group was audited."""
    policy, checker = drafts(endpoints), endpoints.endpoint("checker")
    async with start(**settings_for(policy, refit_questions=64)) as api:
        made = await specialists(api, endpoints)
        await objective(api)
        store = api.router.objectives.store
        one = (await store.uploaded("helpful"))[0]
        messages = (Message(role="user", content="a question of the run"),)
        audited = one.model_copy(update={"digest": "a" * 64, "messages": messages, "audited": True, "policy": "run:1"})
        await store.add_sampled("helpful", [audited])
        await api.ok("PUT", _LABELLER, {"kind": "checker", "url": checker.url, "token": TOKEN})
        await api.ok("POST", _REFIT)
        found = [anchor for anchor in await store.anchors("helpful") if anchor.live_question]
        assert [anchor.messages for anchor in found] == [messages]
        assert len(found[0].sample) == 4
        for endpoint in made.values():
            assert not [item for call in endpoint.calls for item in call["items"] if "of the run" in words(item)]


async def test_an_installed_function_labels_like_a_checker_endpoint(
    start: Start, endpoints: Endpoints, checker_package: None
) -> None:
    async with start(**settings_for(drafts(endpoints))) as api:
        await ready(api, endpoints)
        unknown = await api.call("PUT", _LABELLER, {"kind": "function", "name": "silver"})
        assert (unknown.status_code, "broken, gold" in unknown.text) == (422, True)
        await api.ok("PUT", _LABELLER, {"kind": "function", "name": "gold"})
        assert (await api.ok("POST", _REFIT))["refitted"]["labelled"] == 16
        await api.ok("PUT", _LABELLER, {"kind": "function", "name": "broken"})
        before = (await api.ok("GET", "/v1/objectives/helpful"))["active"]
        failed = await api.call("POST", _REFIT)
        assert failed.status_code == 503
        assert "'not labelled': 16" in failed.json()["detail"]
        assert "RuntimeError in" in failed.json()["detail"], "its message may quote what it was given"
        assert (await api.ok("GET", "/v1/objectives/helpful"))["active"] == before


def _letter(body: dict[str, Any]) -> str:
    first, second = re.findall(r"draft (-?[\d.]+)", body["messages"][-1]["content"])
    return "A" if float(first) > float(second) else "B"


async def test_a_judge_counts_where_it_chooses_the_same_response_in_both_orders(
    start: Start, endpoints: Endpoints
) -> None:
    judge = endpoints.chat(lambda body: [f"Answer {_letter(body)}."])
    async with start(**settings_for(drafts(endpoints))) as api:
        await ready(api, endpoints)
        await api.ok("PUT", _LABELLER, {"kind": "judge", "url": judge.url, "model": "wise", "token": TOKEN})
        assert (await api.ok("POST", _REFIT))["refitted"]["labelled"] == 16
        question = judge.calls[0]["messages"][-1]["content"]
        assert "What counts: Answer what was asked." in question
        assert re.search(r"\n\nAnswer A:\ndraft \S+\n\nAnswer B:\ndraft \S+\n\nWhich answer is better\?", question)
        for anchor in await api.router.objectives.store.anchors("helpful"):
            assert quality(anchor.chosen) > quality(anchor.rejected)
        judge.reply = lambda body: ["A"]  # prefers the first position
        failed = await api.call("POST", _REFIT)
        assert (failed.status_code, "'undecided': 16" in failed.text) == (503, True)


async def test_without_a_labeller_the_anchors_nearest_to_the_policy_count_most(
    start: Start, endpoints: Endpoints
) -> None:
    policy = endpoints.chat(lambda body: [f"answer {i}" for i in range(body["n"])])
    async with start(**settings_for(policy)) as api:
        await ready(api, endpoints)
        gate = await api.ok("POST", _REFIT, {"activate": False})
        assert gate["refitted"]["labelled"] == 0
        assert 0.2 < gate["refitted"]["effective_share"] <= 1
        assert 8 <= gate["report"]["pairs"] <= 63


async def test_gates_are_refitted_at_an_interval_when_the_policy_has_moved(start: Start, endpoints: Endpoints) -> None:
    checker, policy = endpoints.endpoint("checker"), drafts(endpoints)
    async with start(**settings_for(policy, refit_interval_s=0.5)) as api:
        await specialists(api, endpoints)
        await objective(api)
        await api.ok("PUT", _LABELLER, {"kind": "checker", "url": checker.url, "token": TOKEN})
        await api.router.resources.redis.set("mor:{router}:refitted:helpful", "x")  # somebody's, without an end
        await api.ok("POST", "/v1/objectives/helpful/fit")

        async def policies() -> list[str | None]:
            gates = await api.ok("GET", "/v1/objectives/helpful/gates")
            return [gate["refitted"] and gate["refitted"]["policy"] for gate in gates]

        async def refitted() -> bool:
            return f"run-1:{policy.weights_version}" in await policies()

        await eventually(refitted, within_s=60)
        policy.weights_version = 8
        await eventually(refitted, within_s=60)
        assert await policies() == [None, "run-1:7", "run-1:8"]


async def test_a_refit_needs_a_policy_that_answers(start: Start, endpoints: Endpoints) -> None:
    async with start() as api:
        await ready(api, endpoints)
        missing = await api.call("POST", _REFIT)
        assert (missing.status_code, "MOR_POLICY_URL is not set" in missing.text) == (409, True)
    policy = endpoints.chat(lambda body: ["same"] * body["n"])
    async with start(**settings_for(policy)) as api:
        await api.ok("PUT", _LABELLER, {"kind": "checker", "url": endpoints.endpoint("c").url, "token": TOKEN})
        alike = await api.call("POST", _REFIT)
        assert (alike.status_code, "'all alike': 16" in alike.text) == (503, True)


def test_anchors_near_the_policy_weigh_more_within_limits() -> None:
    random = np.random.default_rng(0)
    anchors = random.normal(size=(200, 2, 8))
    anchors[:100, :, 0] += 3  # the first half is where the policy is
    policy = random.normal(size=(100, 8)) + np.eye(8)[0] * 3
    importance = importance_weights(anchors, policy)
    assert importance.min() >= 1 / LIMIT
    assert importance.max() <= LIMIT
    assert importance[:100].mean() > 3 * importance[100:].mean()
    stays = thin(importance, random.uniform(size=200))
    assert stays[:100].sum() > 2 * stays[100:].sum()
    assert effective_share(np.ones(7)) == 1
    assert ordered_pairs([0.5, None, 0.5]) == ()
    assert ordered_pairs([0.1, 0.9, -1]) == ((1, 2), (0, 2), (1, 0))
