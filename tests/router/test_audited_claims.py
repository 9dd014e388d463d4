"""Claims of audited clients: what others do, who fail or lose their weight, makes no honest client look too sure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mor_core.wire import RewardItem
from mor_router.mathematics.audit_test import AuditedGroup, audit_result, worth
from mor_router.rewarding.group_batch import GroupBatch

from tests.router.conftest import Api, Start
from tests.router.endpoints import Endpoints
from tests.router.planted import KINDS, picture, question
from tests.router.test_objectives import objective, specialists

pytestmark = pytest.mark.anyio


def decline(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"item_id": item["item_id"], "status": "unscorable", "detail": "not today"} for item in answers]


async def claims(api: Api, kind: str, number: int) -> dict[str, float]:
    """Reward one group of a run, which is audited, and return ``weight * slope`` of each client in the audit."""
    messages, shown = question(kind, number)
    images = {digest: picture(kind, number) for digest in shown}
    asked = RewardItem(item_id="one", messages=messages, responses=("answer 1", "answer 2"), objective="helpful")
    await api.router.rewarding.pipeline.reward(GroupBatch([asked], images, policies={"one": "run-1:7"}), 10)
    await api.router.trust.auditor.settled()
    store = api.router.trust.audits
    audit = await store.get("helpful", (await store.waiting("helpful"))[-1])
    assert audit is not None
    return {line.client: line.weight * line.slope for line in audit.clients}


async def test_a_claim_does_not_grow_where_others_decline_or_lose_their_weight(
    start: Start, endpoints: Endpoints
) -> None:
    async with start(audit_share=1) as api:
        made = await specialists(api, endpoints)
        await objective(api, 120)
        await api.ok("POST", "/v1/objectives/helpful/fit")
        first, *others = KINDS
        whole = await claims(api, first, 7000)
        assert all(claim > 0 for claim in whole.values())
        made[first].mangle = decline
        assert await claims(api, first, 7000) == pytest.approx({name: whole[name] for name in others})
        await api.ok("PATCH", f"/v1/clients/{first}", {"state": "paused"})
        assert await claims(api, first, 7000) == pytest.approx({name: whole[name] for name in others})


def test_claims_as_the_fit_made_them_convict_no_honest_client_without_the_strongest_one() -> None:
    """Claims in proportion to what the others left would: the second half of the test shows that it is no formality."""
    random = np.random.default_rng(31)
    heavy, own, even = 1.6, 0.8, {"a": 0.5, "b": 0.5}
    made = []
    for _ in range(60):
        scores = {name: random.normal(size=5) for name in even}
        worth = heavy * random.normal(size=5) + own * scores["a"] + own * scores["b"] + random.gumbel(size=5)
        best = np.argsort(-worth).tolist()
        pairs = tuple((best[i], best[j]) for i in range(5) for j in range(i + 1, 5))
        made.append(AuditedGroup(pairs, scores, even, dict.fromkeys(even, own / 0.5), np.zeros(5)))
    louder = [
        AuditedGroup(one.pairs, one.scores, even, {name: 2 * slope for name, slope in one.slopes.items()}, one.rewards)
        for one in made
    ]
    assert max(result.log_evidence for result in audit_result(made).values()) < 2
    assert max(result.log_evidence for result in audit_result(louder).values()) > math.log(100)


def test_a_group_tells_no_more_of_a_specialist_where_the_expert_declines() -> None:
    weights, slopes = {"expert": 0.8, "a": 0.1, "b": 0.1}, {"expert": 2.0, "a": 2.0, "b": 2.0}
    scores = {name: np.array([3.0, 0.0, -3.0]) for name in weights}
    whole = AuditedGroup(((0, 1), (0, 2), (1, 2)), scores, weights, slopes, np.zeros(3))
    declined = replace(whole, scores={"a": scores["a"], "b": scores["b"]})
    assert 0 < worth(declined, "a") <= worth(whole, "a") < 0.1
