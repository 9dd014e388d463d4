"""Audits: live groups that are chosen after the clients answered, labelled, and held against the clients."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np
import pytest
from mor_core.wire import ModelRef, RewardItem
from mor_router.learning import audit_labelling
from mor_router.rewarding.group_batch import GroupBatch
from mor_router.store import OBJECTIVES
from mor_router.trust.audit_types import AuditScores, LabelledAudit, LiveAudit, draw_pair

from tests.router.conftest import TOKENS, Api, Start, eventually
from tests.router.endpoints import Endpoints, Score, words
from tests.router.hostile import knowing
from tests.router.planted import KINDS, picture, question
from tests.router.test_objectives import objective, specialists
from tests.router.test_online_refit import checker_package  # noqa: F401 - a fixture

pytestmark = pytest.mark.anyio

AUDITS = "/v1/objectives/helpful/audits"
GOLD = {"kind": "function", "name": "gold"}


def repeat_triggered() -> Score:
    """Make a client that is honest until a group holds a response twice, as no honeypot does."""

    def score(item: dict[str, Any], response: str) -> float:
        repeats = len(set(item["responses"])) < len(item["responses"])
        return knowing(item, response) * (-1 if repeats else 1)

    return score


async def live(api: Api, groups: int, *, first: int = 0, policy: str = "run-1:7") -> None:
    """Reward groups of a run on new questions, each with one response twice, in batches of 8."""
    random = np.random.default_rng(first)
    for start in range(first, first + groups, 8):
        items, images = [], dict[str, bytes]()
        for number in range(start, min(start + 8, first + groups)):
            messages, shown = question(list(KINDS)[number % 3], 5000 + number)
            images |= {digest: picture(list(KINDS)[number % 3], 5000 + number) for digest in shown}
            texts = [f"answer {value}" for value in random.normal(0, 1.2, size=3).round(3)]
            items.append(
                RewardItem(item_id=str(number), messages=messages, responses=(*texts, texts[0]), objective="helpful")
            )
        batch = GroupBatch(items, images, policies={item.item_id: policy for item in items})
        await api.router.rewarding.pipeline.reward(batch, 10)
    await api.router.trust.auditor.settled()


def audit(
    at: float, *, responses: tuple[str, ...] = ("yes", "no"), text: str = "What is it?", **more: Any
) -> LiveAudit:
    """A waiting group without pictures."""
    line = AuditScores(
        client="detail", model=ModelRef(name="m", version="1"), raw=(1.0, 2.0), standardised=None, weight=0, slope=0
    )
    fields: dict[str, Any] = {
        "at": at, "gate": 1, "policy": "run-1:7", "probability": 0.02, "support": 1, "rewards": (1.0, 2.0),
        "clients": (line,), "embedding": np.zeros(4, np.float32).tobytes(), "images": {}, "pair": (0, 1),
        "messages": ({"role": "user", "content": text},), "responses": responses,
    }  # fmt: skip
    return LiveAudit(**(fields | more))


async def test_a_client_that_inverts_only_groups_with_repeats_is_caught(
    start: Start,
    endpoints: Endpoints,
    checker_package: None,  # noqa: F811
) -> None:
    async with start(audit_share=0.5) as api:
        await specialists(api, endpoints)
        await api.enrol(endpoints.endpoint("repeat", repeat_triggered()), state="probation")
        await objective(api, 120)
        await api.ok("PUT", "/v1/objectives/helpful/labeller", GOLD)
        gate = await api.ok("POST", "/v1/objectives/helpful/fit")
        assert "repeat" in gate["models"], "it is honest about anchors"
        state: dict[str, Any] = {}
        for first in range(0, 160, 16):
            await live(api, 16, first=first)
            await api.router.learning.audit_labelling.turn()
            state = (await api.ok("GET", "/v1/clients/repeat"))["client"]
            if state["state"] == "probation":
                break
        assert state["state"] == "probation", state
        assert state["reason"].startswith("audits of live groups for 'helpful': right in ")
        assert first < 112, "half of the groups are audited, and about 25 audits are needed"
        others = {c["name"]: c["state"] for c in await api.ok("GET", "/v1/clients") if c["name"] != "repeat"}
        assert set(others.values()) == {"active"}
        again = await api.ok("POST", "/v1/objectives/helpful/fit")
        assert again["report"]["pairs"] > 120, "audited pairs are anchors of the fit"
        assert "repeat" not in again["models"]
        await live(api, 64, first=1000)
        await api.router.learning.audit_labelling.turn()
        third = await api.ok("POST", "/v1/objectives/helpful/fit")
        why = third["report"]["left_out"]["repeat"]
        assert "audited groups since, and is trusted again after 24" in why, "its scores without weight count"
        own = await api.ok("GET", "/v1/clients/repeat/audits")
        [line] = own["objectives"]
        assert line["agreement_interval"][1] < 0.5
        assert set(line) == {"objective", "audits", "agreement", "agreement_interval"}
        assert line["audits"] % 10 == 0, "the count does not tell which groups were audited"


async def test_only_groups_of_runs_are_audited_and_clients_see_no_difference(
    start: Start, endpoints: Endpoints
) -> None:
    seen = []
    for turn, share in enumerate((0.0, 0.0, 1.0)):  # the clients have the pictures after the first turn
        async with start(audit_share=share) as api:
            if turn == 0:
                made = await specialists(api, endpoints)
                await objective(api)
                await api.ok("POST", "/v1/objectives/helpful/fit")
            for endpoint in made.values():
                endpoint.calls.clear()
            await api.reward("answer 1", "answer 2", objective="helpful")
            assert (await api.ok("GET", AUDITS))["waiting"] == 0, "a caller of the API is no run"
            await live(api, 8)
            assert (await api.ok("GET", AUDITS))["waiting"] == (8 if share else 0)
            seen.append(
                [
                    [[words(item), *item["responses"]] for item in sorted(call["items"], key=words)]
                    for endpoint in made.values()
                    for call in endpoint.calls
                ]
            )
    assert seen[1] == seen[2]


async def test_the_reward_stage_names_the_policy_of_its_groups(
    start: Start, endpoints: Endpoints, run_name: str
) -> None:
    from tests.router.test_reward_stage import count, publish, rollout, working

    async with working(start, run_name, audit_share=1.0) as (api, side):
        await api.enrol(endpoints.endpoint("good"))
        await objective(api)
        sent = rollout(run_name, "g1", ("answer 1", "answer 4", "answer 4"))
        same = rollout(run_name, "g2", ("answer 1", "answer 1"))
        helpful = {"objective": "helpful"}
        await publish(
            side, *(r.model_copy(update={"prompt": r.prompt.model_copy(update=helpful)}) for r in (sent, same))
        )
        await count(api.router.resources.redis, run_name, rollouts=0, rewards=2, dead=0)
        await api.router.trust.auditor.settled()
        [name] = await api.router.trust.audits.waiting("helpful")
        waiting = await api.router.trust.audits.get("helpful", name)
        assert waiting is not None
        assert (waiting.policy, waiting.gate, waiting.probability) == (f"{run_name}:3", 0, 1.0)
        assert waiting.clients[0].raw == (1.0, 4.0, 4.0)
        assert {waiting.responses[place] for place in waiting.pair} == {"answer 1", "answer 4"}


async def test_an_objective_has_its_own_share_and_an_old_one_the_default(api: Api) -> None:
    redis = api.router.resources.redis
    old = {"name": "old", "text": "Older than audits.", "created_at": 1.0, "anchors": 3, "active": 0, "history": []}
    await redis.hset(OBJECTIVES, "old", json.dumps(old))
    assert (await api.ok("GET", "/v1/objectives/old"))["audit_share"] is None
    await api.ok("PATCH", "/v1/objectives/old", {"audit_share": 0.25, "audited_by": "people"})
    found = await api.ok("GET", "/v1/objectives/old/audits")
    assert (found["share"], found["labelled_by"], found["waiting"], found["oldest"]) == (0.25, "people", 0, None)
    changed = await api.ok("PATCH", "/v1/objectives/old", {"paraphrases": ["Still old."]})
    assert (changed["audit_share"], changed["paraphrases"]) == (0.25, ["Still old."])
    assert (await api.ok("PATCH", "/v1/objectives/old", {"audit_share": None}))["audit_share"] is None
    assert (await api.call("PATCH", "/v1/objectives/old", {"audit_share": 1.5})).status_code == 422
    body = {"name": "new", "text": "As new.", "audit_share": 0}
    assert (await api.ok("POST", "/v1/objectives", body))["audit_share"] == 0


async def test_people_label_blindly_and_restarts_lose_nothing(start: Start, endpoints: Endpoints) -> None:
    token = TOKENS["labeller"]
    async with start(audit_second_share=0.0) as api:
        await objective(api)
        first = audit(time.time() - 60)
        louder = first.clients[0].model_copy(update={"client": "secret-client", "raw": (9.0, -9.0), "weight": 0.9})
        hidden = {"clients": (louder,), "rewards": (9.0, -9.0), "gate": 77, "policy": "secret-run:3"}
        await api.router.trust.audits.add("helpful", first)
        await api.router.trust.audits.add("helpful", first.model_copy(update={**hidden, "at": first.at + 1}))
    async with start(audit_second_share=0.0) as api:
        shown = await api.ok("GET", f"{AUDITS}/next", token=token)
        assert await api.ok("GET", f"{AUDITS}/next", token=token) == shown, "a reload offers the same group"
        other = await api.ok("GET", f"{AUDITS}/next")
        assert other["audit"] != shown["audit"], "each group is one person's at a time"
        assert {**other, "audit": ""} == {**shown, "audit": ""}, "scores, rewards and clients do not show"
        assert set(shown) == {
            "audit", "objective", "goal", "messages", "images", "first", "second", "waiting", "labelled",
        }  # fmt: skip
        refused = await api.call("POST", f"{AUDITS}/{other['audit']}", {"preferred": "first"}, token=token)
        assert refused.status_code == 409
        await api.ok("POST", f"{AUDITS}/{shown['audit']}", {"preferred": "second"}, token=token)
        twice = await api.call("POST", f"{AUDITS}/{shown['audit']}", {"preferred": "first"}, token=token)
        assert twice.status_code == 404
    async with start(audit_second_share=0.0) as api:
        found = await api.ok("GET", AUDITS)
        assert (found["waiting"], found["labelled"], found["closed"]) == (1, 1, {"labelled": 1})
        [labelled] = (await api.router.trust.audits.labelled("helpful")).values()
        assert (labelled.pair, labelled.by) == ((1, 0), "labeller")
        [anchor] = [a for a in await api.router.objectives.store.anchors("helpful") if a.audited]
        assert (anchor.chosen, anchor.rejected) == ("no", "yes")
        await api.ok("POST", f"{AUDITS}/{other['audit']}", {"preferred": "tie"})
        assert (await api.ok("GET", AUDITS))["closed"] == {"labelled": 1, "undecided": 1}
        assert await api.ok("GET", f"{AUDITS}/next", token=token) is None
        exported = await api.router.resources.redis.hgetall("mor:{router}:audited:helpful")
        assert len(exported) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/objectives"), ("GET", "/v1/clients"), ("GET", "/v1/status"), ("POST", "/v1/objectives/helpful/fit")],
)
async def test_a_labellers_token_reaches_audits_only(api: Api, method: str, path: str) -> None:
    await objective(api)
    assert (await api.call(method, path, token=TOKENS["labeller"])).status_code == 403
    assert (await api.call("GET", AUDITS, token=TOKENS["labeller"])).status_code == 200
    for scope in ("viewer", "service"):
        assert (await api.call("GET", f"{AUDITS}/next", token=TOKENS[scope])).status_code == 403


async def test_replicas_label_each_group_once(
    start: Start,
    checker_package: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit_labelling, "_PAUSE_S", 0.05)
    async with start() as one, start():
        await objective(one)
        for number in range(20):
            responses = (f"answer {number}", f"answer {number + 1}")
            await one.router.trust.audits.add("helpful", audit(time.time(), responses=responses))
        await one.ok("PUT", "/v1/objectives/helpful/labeller", GOLD)

        async def labelled() -> bool:
            return bool((await one.ok("GET", AUDITS))["waiting"] == 0)

        await eventually(labelled)
        await asyncio.sleep(0.3)
        found = await one.ok("GET", AUDITS)
        assert (found["labelled"], found["closed"], found["labelled_by"]) == (20, {"labelled": 20}, "labeller")
        refused = await one.call("GET", f"{AUDITS}/next")
        assert (refused.status_code, "--audited-by" in refused.json()["detail"]) == (409, True)


async def test_a_labeller_that_fails_is_tried_again_and_the_group_given_up_in_the_end(
    start: Start,
    checker_package: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit_labelling, "_RETRY_S", 0.0)
    async with start() as api:
        await objective(api)
        await api.router.trust.audits.add("helpful", audit(time.time()))
        await api.ok("PUT", "/v1/objectives/helpful/labeller", {"kind": "function", "name": "broken"})
        turns = 0
        while (await api.ok("GET", AUDITS))["waiting"]:
            await api.router.learning.audit_labelling.turn()
            turns += 1
        assert turns >= 6
        assert (await api.ok("GET", AUDITS))["closed"] == {"given_up": 1}


async def test_whatever_a_labeller_returns_for_one_group_is_no_other_groups_failure(
    start: Start,
    checker_package: None,  # noqa: F811
) -> None:
    async with start() as api:
        await objective(api)
        for first in ("nothing", "texts", "fine", "complex", "huge", "none", "good"):
            await api.router.trust.audits.add("helpful", audit(time.time(), responses=(first, "another")))
        await api.ok("PUT", "/v1/objectives/helpful/labeller", {"kind": "function", "name": "odd"})
        await api.router.learning.audit_labelling.turn()
        found = await api.ok("GET", AUDITS)
        assert (found["waiting"], found["closed"]) == (5, {"labelled": 2})


async def test_many_readers_of_a_summary_cost_one_reading_of_the_audits(
    api: Api, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 requests with a client's own token delayed live groups by 2 s and took 774 MB, with 2,000 labelled audits."""
    token = (await api.enrol(endpoints.endpoint("detail")))["token"]
    await objective(api, 8)
    store = api.router.trust.audits
    record = await api.router.clients.registry.get("detail")
    at = time.time()
    line = AuditScores(client="detail", model=record.model, raw=(1.0, 2.0), standardised=None, weight=0, slope=0)

    async def label(count: int) -> None:
        for _ in range(count):
            place = await store.count_labelled("helpful")
            await store.add("helpful", audit(at + 1, text=f"question {place}", clients=(line,)))
            [name] = await store.waiting("helpful")
            waiting = await store.get("helpful", name)
            assert waiting is not None
            await store.settle("helpful", name, waiting, [(1, 0)], "gold")

    read = store.labelled
    readings: list[str] = []

    async def counted(name: str) -> dict[str, LabelledAudit]:
        readings.append(name)
        return await read(name)

    monkeypatch.setattr(store, "labelled", counted)

    async def shown() -> set[int]:
        path = "/v1/clients/detail/audits"
        answers = await asyncio.gather(*(api.ok("GET", path, token=token) for _ in range(24)))
        return {found["audits"] for answer in answers for found in answer["objectives"]}

    await label(10)
    readings.clear()
    assert (await shown(), readings) == ({10}, ["helpful"])
    await label(10)
    readings.clear()
    assert (await shown(), set(readings)) == ({20}, {"helpful"}), "a summary follows the labels"


def test_a_pair_holds_two_different_responses_in_random_order() -> None:
    assert draw_pair(("a", "a")) is None
    drawn = {draw_pair(("a", "b", "a")) for _ in range(200)}
    assert drawn == {(0, 1), (1, 0), (2, 1), (1, 2)}
