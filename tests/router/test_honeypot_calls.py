"""Honeypots in live calls: neither the size of a call nor the number of honeypots in a stretch of groups tells."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from mor_core.wire import Message, ScoreItem
from mor_router.clients.scoring import ClientResponses, ScoreBatch, ScoreRequester
from mor_router.rewarding.group_batch import GroupBatch
from mor_router.schemas import RewardRequest
from mor_router.trust.honeypots import HoneypotCall, _Traffic

from tests.router.conftest import Start, eventually
from tests.router.endpoints import Endpoints, html, words
from tests.router.planted import KINDS, jsonl, question, rows, specialist
from tests.router.test_objectives import objective, upload

pytestmark = pytest.mark.anyio


def traffic(stretch: float) -> _Traffic:
    call: Any = HoneypotCall.__new__(HoneypotCall)
    return _Traffic(stretch, call)


@pytest.mark.parametrize("stretch", [1.0, 9.0, 19.0])
def test_each_stretch_of_live_groups_has_one_honeypot_at_a_random_place(stretch: float) -> None:
    seen = traffic(stretch)
    found = [seen.due(1) for _ in range(round(200 * stretch))]
    assert sum(found) == 200
    assert all(sum(found[start : start + round(stretch)]) == 1 for start in range(0, len(found), round(stretch)))
    if stretch > 1:
        places = {place % round(stretch) for place, count in enumerate(found) if count}
        assert len(places) == round(stretch)


async def test_honeypots_join_live_calls_and_make_none_longer_than_live_ones(
    start: Start, endpoints: Endpoints
) -> None:
    async with start(anchor_share=0.2, anchor_reserve=0.5) as api:
        expert = endpoints.endpoint("chart", specialist("chart"))
        await api.enrol(expert)
        await objective(api, 180)
        expert.calls.clear()
        for call in range(60):
            items, images = [], {}
            for index in range(1 + call % 3):
                messages, shown = question(list(KINDS)[index], 5000 + 3 * call + index)
                images |= shown
                responses = [f"answer {call}.{n}" for n in range(4)]
                items.append(
                    {"item_id": str(index), "messages": messages, "responses": responses, "objective": "helpful"}
                )
            assert len(await api.reward_groups(items, images)) == len(items)
        await api.router.trust.honeypots.settled()
        anchors = {f" {row['prompt']}" for row in rows(180)}
        mixed, sizes = Counter[int](), Counter[int]()
        for body in expert.calls:
            if not body["images"]:  # a call repeated with pictures has the same groups
                honeypots = sum(words(item) in anchors for item in body["items"])
                sizes[len(body["items"])] += 1
                mixed[len(body["items"])] += 0 < honeypots < len(body["items"])
        assert set(sizes) == {1, 2, 3}, "no call has a size that live calls do not have"
        assert mixed[2] + mixed[3] >= 5


async def test_a_client_that_fails_at_first_gets_the_honeypots_again(start: Start, endpoints: Endpoints) -> None:
    """Else all that comes again would be live groups, and a client that fails at first could lie there without risk."""
    async with start(anchor_share=0.3, anchor_reserve=0.5, circuit_calls=1000, circuit_least_calls=1000) as api:
        expert = endpoints.endpoint("expert", lambda item, response: float(len(response)))
        await api.enrol(expert)
        await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer what was asked."})
        assert (await upload(api, jsonl(rows(90, images=False)))).status_code == 200
        joined = 0
        for number in range(30):
            size = 1 + number % 3
            groups = [
                {"item_id": f"{n}", "messages": [{"role": "user", "content": f"{number} {n}"}], "responses": ("1", "2")}
                for n in range(size)
            ]
            items = [group | {"objective": "helpful"} for group in groups]
            batch, known, attempts = GroupBatch(RewardRequest(items=items, images={}).items, {}), None, []
            for broken in (html, None):
                expert.calls.clear()
                expert.broken = broken
                _, known = await api.router.rewarding.pipeline.reward(batch, 10, known=known)
                calls = [sorted(words(item) for item in body["items"]) for body in expert.calls]
                attempts += [call for call in calls if f"{number} 0" in call]  # not honeypots alone
            first, second = attempts
            assert first == second
            joined += len(first) > size
        assert joined >= 3


async def test_a_honeypot_call_that_fails_is_tried_again(start: Start, endpoints: Endpoints) -> None:
    patient = {"circuit_calls": 1000, "circuit_least_calls": 1000, "group_retry_s": 0.01}
    async with start(anchor_share=0.5, anchor_reserve=0.5, **patient) as api:
        expert = endpoints.endpoint("expert", specialist("chart"))
        await api.enrol(expert)
        await objective(api, 30)
        expert.broken = html
        for _ in range(4):
            await api.reward("answer 1", "answer 2", objective="helpful")
        expert.mend_after = len(expert.calls) + 2
        await api.router.trust.honeypots.settled()
        times = Counter(words(item) for body in expert.calls for item in body["items"])
        del times["What is it?"]
        scores = await api.router.clients.honeypot_scores.all("helpful")
        assert len({score.digest for score in scores}) == len(times) >= 1
        assert max(times.values()) >= 2


async def test_the_answer_of_a_slow_shadow_is_delivered_late(start: Start, endpoints: Endpoints) -> None:
    """A client on probation earns its weight back by honeypots, also where live groups do not wait for it."""
    async with start() as api:
        quick, slow = endpoints.endpoint("quick"), endpoints.endpoint("slow")
        await api.enrol(quick)
        await api.enrol(slow, state="probation")
        slow.delay_s = 0.3
        item = ScoreItem(item_id="i", messages=(Message(role="user", content="?"),), responses=("a", "b"), objective="")
        late: list[ClientResponses] = []
        found = await ScoreRequester(api.router.clients.pool).fan_out(
            ScoreBatch([item], {}), {"i": ("quick",)}, ("slow",), 5, late=late.append
        )
        assert set(found["i"]) == {"quick"}

        async def delivered() -> bool:
            return bool(late)

        await eventually(delivered)
        assert {client: answer.status for client, answer in late[0]["i"].items()} == {"slow": "ok"}
