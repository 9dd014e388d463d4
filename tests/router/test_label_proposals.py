"""Proposals: which unlabelled pairs to have labelled next, from live groups and uploads to anchors of the next fit."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import numpy as np
import pytest
from mor_core.proposals import MOST_CANDIDATES
from mor_router.trust import live_audits
from redis.asyncio import Redis

from tests.router.conftest import TOKENS, Api, Start, eventually
from tests.router.endpoints import Endpoints, image_names
from tests.router.planted import jsonl, rows, specialist
from tests.router.test_asks import enrol, received
from tests.router.test_audits import AUDITS, GOLD, audit, live
from tests.router.test_objectives import NDJSON, objective, specialists, upload
from tests.router.test_online_refit import checker_package  # noqa: F401 - a fixture

pytestmark = pytest.mark.anyio

PROPOSALS = "/v1/objectives/helpful/proposals"
FIT = "/v1/objectives/helpful/fit"


def unlabelled(count: int, start: int = 700) -> list[dict[str, Any]]:
    """Make pairs whose order means nothing: half of them have the worse response as ``chosen``."""
    made = rows(count, start=start, seed=start)
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in made]
    return [turned[place] if place % 2 else row for place, row in enumerate(made)]


async def put(api: Api, made: list[dict[str, Any]], query: str = "") -> Any:
    path = f"/v1/objectives/helpful/candidates{query}"
    response = await api.http.put(path, content=jsonl(made), headers=NDJSON)
    assert response.status_code == 200, response.text
    return response.json()


async def few_labels(api: Api, *kinds: str, count: int = 24) -> None:
    """Fit on anchors of some kinds of questions."""
    await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer what was asked."})
    some = [row for row in rows(3 * count) if row["domain"] in kinds][:count]
    assert (await upload(api, jsonl(some))).status_code == 200
    await api.ok("POST", FIT)


def better(pair: dict[str, Any]) -> str:
    first, second = (float(pair[place].split()[1]) for place in ("first", "second"))
    return "first" if first > second else "second"


async def test_pairs_far_from_all_labels_come_first_and_their_labels_improve_the_fit(
    start: Start, endpoints: Endpoints
) -> None:
    """The anchors hold nothing of the kind ``detail``; a third of the candidates are of it."""
    async with start(audit_second_share=0.0) as api:
        await specialists(api, endpoints)
        await few_labels(api, "chart", "medical")
        assert await put(api, unlabelled(90)) == {
            "objective": "helpful", "kept": 90, "labelled": 0, "held_back": 0, "unscored": 0,
        }  # fmt: skip
        before = await api.ok("GET", f"{PROPOSALS}?count=64")
        assert (before["candidates"], before["waiting"], len(before["pairs"])) == (90, 0, 64)
        assert {pair["audit"] for pair in before["pairs"]} == {None}
        kinds = Counter(pair["domain"] for pair in before["pairs"][:12])
        assert kinds["detail"] >= 3, kinds
        assert before["pairs"][0]["domain"] == "detail"
        values = [tuple(pair[part] for part in ("information", "disagreement", "coverage")) for pair in before["pairs"]]
        assert (np.array(values) >= 0).all()
        assert np.mean(values[:8], axis=0)[1] >= np.mean(values[-8:], axis=0)[1] - 0.05
        chosen = await api.ok("POST", PROPOSALS, {"count": 16})
        assert (chosen["candidates"], chosen["waiting"], len(chosen["pairs"])) == (74, 16, 16)
        during = (await api.ok("GET", f"{PROPOSALS}?count=64"))["pairs"]
        assert not {pair["question"] for pair in during} & {pair["question"] for pair in chosen["pairs"]}
        assert max(pair["coverage"] for pair in during) < 0.5, "pairs that wait count as labelled"
        for pair in chosen["pairs"]:
            shown = await api.ok("GET", f"{AUDITS}/next", token=TOKENS["labeller"])
            assert shown["audit"] == pair["audit"], "the most valuable pair is labelled first"
            assert (shown["first"], shown["second"]) == (pair["first"], pair["second"])
            label = {"preferred": better(pair)}
            await api.ok("POST", f"{AUDITS}/{shown['audit']}", label, token=TOKENS["labeller"])
        assert await api.ok("GET", f"{AUDITS}/next", token=TOKENS["labeller"]) is None
        anchors = await api.router.objectives.store.anchors("helpful")
        assert len(anchors) == 24 + 16
        assert all(float(a.chosen.split()[1]) > float(a.rejected.split()[1]) for a in anchors)
        gate = await api.ok("POST", FIT)
        assert gate["report"]["pairs"] == 40
        detail = next(line for line in gate["report"]["clients"] if line["client"] == "detail")
        assert detail["weight_by_domain"]["detail"] > 0.5
        after = await api.ok("GET", PROPOSALS)
        highest = [max(pair["coverage"] for pair in found["pairs"]) for found in (before, after)]
        assert highest[1] < highest[0] / 2, "the labels cover what no label covered"


async def test_a_queue_server_without_room_loses_no_pair(api: Api, endpoints: Endpoints, redis: Redis) -> None:
    await specialists(api, endpoints)
    await few_labels(api, "chart", "medical")
    await put(api, unlabelled(12))
    try:
        await redis.config_set("maxmemory", 1)
        refused = await api.call("POST", PROPOSALS, {"count": 4})
    finally:
        await redis.config_set("maxmemory", 0)
    assert refused.status_code == 503, refused.text
    found = await api.ok("GET", PROPOSALS)
    assert (found["candidates"], found["waiting"]) == (12, 0)


async def test_pairs_on_which_the_clients_disagree_come_before_those_on_which_they_agree(
    api: Api, endpoints: Endpoints
) -> None:
    """Two equal specialists, whose errors are independent, on questions of their one kind."""
    for name in ("one", "two", "three"):
        await api.enrol(endpoints.endpoint(name, specialist("chart", salt=name)), state="probation")
    await few_labels(api, "chart", count=24)
    await put(api, [row for row in unlabelled(180) if row["domain"] == "chart"])
    pairs = (await api.ok("GET", f"{PROPOSALS}?count=60"))["pairs"]
    split = [pair["disagreement"] for pair in pairs]
    assert np.mean(split[:10]) > np.mean(split[-30:]) + 0.3, split


async def test_nothing_is_proposed_twice_and_a_new_upload_brings_back_nothing(
    start: Start, endpoints: Endpoints
) -> None:
    made = unlabelled(30)
    async with start(audit_second_share=0.0) as one, start() as two:
        await specialists(one, endpoints)
        await few_labels(one, "chart", "medical")
        await put(one, [*made, *({**row, "id": f"again {row['id']}"} for row in made[:3])])
        both = await asyncio.gather(*(api.ok("POST", PROPOSALS, {"count": 10}) for api in (one, two)))
        pairs = [pair for proposal in both for pair in proposal["pairs"]]
        assert len({pair["question"] for pair in pairs}) == len(pairs) >= 10
        waiting = len(await one.router.trust.audits.proposed.names("helpful"))
        assert waiting == len(pairs)
        label = {"preferred": better(pairs[0])}
        await one.ok("POST", f"{AUDITS}/{pairs[0]['audit']}", label)
        assert await put(one, made) == {
            "objective": "helpful", "kept": 30 - waiting, "labelled": waiting, "held_back": 0, "unscored": 0,
        }  # fmt: skip
        rest = await two.ok("POST", PROPOSALS, {"count": 64})
        assert len(rest["pairs"]) == 30 - waiting
        assert not {pair["question"] for pair in rest["pairs"]} & {pair["question"] for pair in pairs}
        assert (await one.ok("POST", PROPOSALS))["pairs"] == []


async def test_pairs_of_live_groups_are_proposed_and_no_client_sees_them_again(
    start: Start,
    endpoints: Endpoints,
    checker_package: None,  # noqa: F811
) -> None:
    async with start(candidate_share=1.0) as api:
        made = await specialists(api, endpoints)
        await objective(api, 24)
        await api.ok("POST", FIT)
        await live(api, 16)
        assert (await api.ok("GET", AUDITS))["waiting"] == 0, "a candidate is no audit"
        found = await api.ok("POST", PROPOSALS, {"count": 8})
        assert {pair["source"] for pair in found["pairs"]} == {"live"}
        assert len({pair["question"] for pair in found["pairs"]}) == 8, "one pair of a group"
        assert (found["candidates"], found["waiting"]) == (8, 8)
        await api.ok("PUT", "/v1/objectives/helpful/labeller", GOLD)
        await api.router.learning.audit_labelling.turn()
        anchors = {a.digest: a for a in await api.router.objectives.store.anchors("helpful") if a.audited}
        assert len(anchors) == 8
        proposed = {frozenset((pair["first"], pair["second"])) for pair in found["pairs"]}
        assert {frozenset((a.chosen, a.rejected)) for a in anchors.values()} == proposed, "the labeller saw these pairs"
        for endpoint in made.values():
            endpoint.calls.clear()
        gate = await api.ok("POST", FIT)
        assert gate["report"]["pairs"] == 24 + 8
        texts = {text for endpoint in made.values() for item in received(endpoint) for text in item["responses"]}
        assert not texts & {text for pair in proposed for text in pair}


async def test_labels_of_proposed_pairs_convict_no_client(start: Start, endpoints: Endpoints) -> None:
    """The same labels on audits would: a client that was wrong in each pair on which all disagree."""
    async with start(audit_second_share=0.0) as api:
        made = await specialists(api, endpoints)
        await objective(api)
        await api.ok("POST", FIT)
        model = (await api.router.clients.registry.get("chart")).model
        wrong = (
            audit(1.0)
            .clients[0]
            .model_copy(
                update={"client": "chart", "model": model, "standardised": (-1.0, 1.0), "weight": 0.9, "slope": 2.0}
            )
        )
        since = (await api.router.clients.registry.get("chart")).enrolled_at
        store = api.router.trust.audits
        for number in range(40):
            waiting = audit(since + 1 + number, text=f"q {number}", clients=(wrong,), proposed=True)
            await store.settle("helpful", f"{number}", waiting, [(0, 1)], "ann")
        assert await api.router.trust.audit_review.review("helpful") == {}
        assert (await api.ok("GET", "/v1/clients/chart"))["client"]["state"] == "active"
        assert (await api.ok("GET", "/v1/clients/chart/audits"))["objectives"] == []
        for number in range(40):
            waiting = audit(since + 1 + number, text=f"drawn {number}", clients=(wrong,))
            await store.settle("helpful", f"{number}", waiting, [(0, 1)], "ann")
        assert (await api.router.trust.audit_review.review("helpful"))["chart"].log_evidence > 4
        assert len(made) == 3


async def test_an_upload_keeps_to_rules_of_clients_and_to_held_out_pictures(start: Start, endpoints: Endpoints) -> None:
    async with start(anchor_share=0.4, anchor_reserve=0.4) as api:
        chart = endpoints.endpoint("chart", specialist("chart"))
        medical = endpoints.endpoint("medical", specialist("medical"))
        await enrol(api, chart, {})
        await enrol(api, medical, {"domains": ["medical"]})
        await objective(api, 24)
        made = unlabelled(60)
        counts = await put(api, made)
        assert counts["kept"] + counts["held_back"] == 60
        assert 10 < counts["held_back"] < 40
        assert {item["messages"][0]["content"][-1]["text"][:5] for item in received(medical)} == {"Brain"}
        pictures = {name for item in received(chart) for name in image_names(item)}
        assert len(pictures) == counts["kept"]
        await upload(api, jsonl([*rows(24), *made]))
        anchors = await api.router.objectives.store.anchors("helpful")
        _, held_out = await api.router.objectives.holdout.split(anchors)
        assert not pictures & {name for a in held_out for message in a.messages for name in message.image_hashes}
        counts = await put(api, unlabelled(3, start=900), "?public=true")
        assert counts["labelled"] == 0


async def test_withdrawn_labels_of_uploaded_pairs_leave_the_anchors(start: Start, endpoints: Endpoints) -> None:
    async with start(audit_second_share=0.0) as api:
        await specialists(api, endpoints)
        await few_labels(api, "chart", "medical")
        await put(api, unlabelled(12))
        [pair] = (await api.ok("POST", PROPOSALS, {"count": 1}))["pairs"]
        await api.ok("POST", f"{AUDITS}/{pair['audit']}", {"preferred": "second"}, token=TOKENS["labeller"])
        assert len(await api.router.objectives.store.anchors("helpful")) == 25
        assert await api.ok("DELETE", "/v1/audits/labels?by=labeller") == {
            "person": "labeller", "withdrawn": {"helpful": 1},
        }  # fmt: skip
        assert len(await api.router.objectives.store.anchors("helpful")) == 24


async def test_bounds_and_reasons(start: Start, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start() as api:
        await specialists(api, endpoints)
        assert (await api.call("GET", PROPOSALS)).status_code == 404
        await objective(api, 24)
        unfitted = await api.call("POST", PROPOSALS)
        assert (unfitted.status_code, "mor objective fit helpful" in unfitted.json()["detail"]) == (409, True)
        await api.ok("POST", FIT)
        assert (await api.ok("POST", PROPOSALS))["pairs"] == [], "no candidates"
        for count in (0, 65):
            assert (await api.call("POST", PROPOSALS, {"count": count})).status_code == 422
            assert (await api.call("GET", f"{PROPOSALS}?count={count}")).status_code == 422
        plain = [row | {"images": []} for row in unlabelled(MOST_CANDIDATES + 1)]
        path = "/v1/objectives/helpful/candidates"
        many = await api.http.put(path, content=jsonl(plain), headers=NDJSON)
        assert (many.status_code, f"at most {MOST_CANDIDATES}" in many.json()["detail"]) == (422, True)
        wrong = await api.http.put(path, content=b'{"prompt": "q", "chosen": "a"}', headers=NDJSON)
        assert wrong.status_code == 422
        await put(api, unlabelled(30))
        from mor_router.learning import label_proposals

        monkeypatch.setattr(label_proposals, "MOST_PROPOSED", 5)
        assert len((await api.ok("POST", PROPOSALS))["pairs"]) == 5
        full = await api.call("POST", PROPOSALS)
        assert (full.status_code, "mor label next helpful" in full.json()["detail"]) == (409, True)
        assert (await api.ok("GET", PROPOSALS))["waiting"] == 5
        monkeypatch.setattr(label_proposals, "MOST_PROPOSED", 64)
        monkeypatch.setattr(api.router.trust.audits.proposed, "most_bytes", 7 << 10)
        assert len((await api.ok("POST", PROPOSALS))["pairs"]) == 2, "a pair with its picture takes a kibibyte"
        assert live_audits.MOST_PROPOSED >= 64


async def test_live_candidates_are_bounded_and_junk_among_them_harms_none(start: Start, endpoints: Endpoints) -> None:
    async with start(candidate_share=1.0) as api:
        await specialists(api, endpoints)
        await objective(api, 24)
        await api.ok("POST", FIT)
        groups = api.router.trust.candidate_groups
        groups.most = 10
        await live(api, 24)
        kept = await groups.names("helpful")
        assert len(kept) == 10
        redis = api.router.resources.redis
        for name in (f"{1:012x}-1-junk", "no name", f"{2:012x}-ffffffff-large"):
            await redis.hset("mor:{router}:groups:helpful", name, '{"at": 1e999}')
        found = await api.ok("POST", PROPOSALS, {"count": 64})
        assert len(found["pairs"]) == 10
        await redis.delete("mor:{router}:groups:helpful")
        await redis.set("mor:{router}:groups:helpful", "of another type")
        assert (await api.ok("POST", PROPOSALS))["candidates"] == 0
        await live(api, 3, first=100)

        async def all_are_kept() -> bool:
            return len(await groups.names("helpful")) == 3

        await eventually(all_are_kept)
        assert len((await api.ok("POST", PROPOSALS))["pairs"]) == 3


@pytest.mark.parametrize("scope", ["viewer", "service", "scorer", "labeller"])
async def test_a_labeller_reads_proposals_and_an_admin_alone_makes_them(api: Api, scope: str) -> None:
    await objective(api)
    token = TOKENS[scope]
    read = await api.call("GET", PROPOSALS, token=token)
    assert read.status_code == (409 if scope == "labeller" else 403)
    assert (await api.call("POST", PROPOSALS, token=token)).status_code == 403
    headers = {**NDJSON, "Authorization": f"Bearer {token}"}
    path = "/v1/objectives/helpful/candidates"
    assert (await api.http.put(path, content=jsonl(unlabelled(3)), headers=headers)).status_code == 403
