"""Honeypots: they look like live traffic, and the clients' scores of them decide which clients are trusted."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from mor_core.wire import ImagePart, Message
from mor_router.clients.honeypot_scores import HoneypotScores
from mor_router.objectives.anchor_holdout import AnchorHoldout
from mor_router.objectives.objective_store import Anchor
from mor_router.store import ANCHOR_HOLDOUT, ANCHORS
from mor_router.trust.honeypot_shapes import GroupShape, RecentShapes, choose_anchor, honeypot_group
from redis.asyncio import Redis

from tests.router.conftest import Api, Start
from tests.router.endpoints import Endpoint, Endpoints, words
from tests.router.hostile import knowing, two_faced
from tests.router.planted import KINDS, jsonl, question, rows, specialist
from tests.router.test_objectives import objective, specialists, upload

pytestmark = pytest.mark.anyio


def anchor(*others: str) -> Anchor:
    return Anchor(
        id="a",
        digest="0" * 64,
        messages=({"role": "user", "content": "?"},),
        chosen="good",
        rejected="bad",
        domain=None,
        others=others,
    )


def shape(*counts: int, characters: float = 4.0, pictures: int = 0, times: int = 0, asked: int = 0) -> GroupShape:
    return GroupShape(counts, characters, 1, pictures, times, asked)


@pytest.mark.parametrize(
    ("counts", "fillers"),
    [((1, 1), ["x"]), ((1,) * 4, ["good", "x", "y", "z"]), ((3, 2, 2, 1), ["x"]), ((2, 2, 1), []), ((5, 1), ["x"])],
)
def test_a_honeypot_group_has_the_requested_shape_and_its_anchor_at_random_places(
    counts: tuple[int, ...], fillers: list[str]
) -> None:
    places = set()
    for _ in range(60):
        made = honeypot_group(anchor(), shape(*counts), fillers)
        assert len(made.responses) == sum(counts)
        assert made.rejected is not None
        assert (made.responses[made.chosen], made.responses[made.rejected]) == ("good", "bad")
        if len(counts) <= 2 + len(set(fillers)):
            assert sorted(Counter(made.responses).values(), reverse=True) == sorted(counts, reverse=True)
        places.add((made.chosen, made.rejected))
    assert len(places) >= 2


def test_a_group_of_equal_responses_is_imitated_and_gives_no_score() -> None:
    made = honeypot_group(anchor("x"), shape(4), [])
    assert len(made.responses) == 4
    assert len(set(made.responses)) == 1
    assert made.rejected is None


def test_a_sample_of_the_right_size_is_sent_as_the_policy_drew_it() -> None:
    drawn = ("good", "good", "x", "bad")
    sampled = anchor("x").model_copy(update={"sample": drawn})
    made = honeypot_group(sampled, shape(2, 2), ["y"])
    assert Counter(made.responses) == Counter(drawn)
    assert made.rejected is not None
    assert (made.responses[made.chosen], made.responses[made.rejected]) == ("good", "bad")
    assert len(honeypot_group(sampled, shape(3, 2), ["y"]).responses) == 5
    [only] = {*honeypot_group(sampled, shape(4), []).responses}
    assert only in drawn


def test_anchors_are_chosen_by_what_was_sent_before_then_by_likeness_and_use() -> None:
    recent = RecentShapes()

    def made(digest: str, text: str, *others: str, picture: str | None = None) -> Anchor:
        content: Any = (ImagePart.of(picture * 64),) if picture else digest
        message = Message(role="user", content=content)
        return anchor(*others).model_copy(update={"digest": digest, "messages": (message,), "chosen": text})

    def chosen(
        wanted: GroupShape, of: list[Anchor], *, used: dict[str, int] | None = None, again: bool = False
    ) -> set[str]:
        found = [choose_anchor([wanted], of, used or Counter(), recent, again=again) for _ in range(40)]
        return {pair[0].digest for pair in found if pair}

    known, fresh = made("known", "good", picture="1"), made("fresh", "good", picture="2")
    recent.sent(known.messages)
    new, once = shape(1, 1, pictures=1), shape(1, 1, pictures=1, times=1, asked=1)
    assert chosen(new, [known, fresh]) == {"fresh"}, "no picture comes more often than a live group's"
    assert chosen(once, [known, fresh]) == {"known"}, "no question is newer than a live group's"
    assert chosen(once, [fresh]) == set()
    assert chosen(once, [fresh], again=True) == {"fresh"}, "uploaded pairs may be newer"
    narrow = [made(f"narrow-{n}", "good") for n in range(40)]
    wide = [made(f"wide-{n}", "good", "a", "b") for n in range(8)]
    times = {a.digest: n for n, a in enumerate([*narrow, *wide])}
    assert chosen(shape(1, 1, 1, 1), [*narrow, *wide], used=times) == {"wide-0"}


def test_groups_that_compare_nothing_are_not_imitated() -> None:
    recent = RecentShapes()
    message = (Message(role="user", content="?"),)
    recent.observe("helpful", [(message, ("a",))])
    assert recent.draw("helpful", 20) == []
    recent.observe("helpful", [(message, ("a", "a", "b", "c"))])
    assert {drawn.counts for drawn in recent.draw("helpful", 20)} == {(2, 1, 1)}


async def test_only_groups_of_runs_are_imitated(start: Start, endpoints: Endpoints) -> None:
    """A caller of the API could mark honeypots by a size that no run has."""
    async with start(anchor_share=0.5) as api:
        made = await specialists(api, endpoints)
        await objective(api)
        await api.ok("POST", "/v1/objectives/helpful/fit")
        for endpoint in made.values():
            endpoint.calls.clear()
        odd = {"messages": [{"role": "user", "content": "?"}], "responses": [f"answer {n}" for n in range(7)]}
        for number in range(24):
            await api.ok("POST", "/v1/reward", {"items": [odd | {"item_id": str(number), "objective": "helpful"}]})
            await api.reward("answer 1", "answer 2", objective="helpful")
        await api.router.trust.honeypots.settled()
        for endpoint in made.values():
            sizes = Counter(len(item["responses"]) for call in endpoint.calls for item in call["items"])
            assert sizes[7] == 24, "no honeypot has the size of the caller's groups"
            assert sizes[2] > 24, "there were honeypots"


async def test_the_holdout_is_by_picture_and_never_more_than_its_share(redis: Redis) -> None:
    pictures = [ImagePart.of(f"{number:064x}") for number in range(40)]
    anchors = [
        anchor().model_copy(
            update={"digest": f"{n:064x}", "messages": (Message(role="user", content=(pictures[n % 40],)),)}
        )
        for n in range(200)
    ]
    shown, kept = await AnchorHoldout(redis, 0.3).split(anchors)
    assert 0 < len(kept) <= 60
    assert len(shown) + len(kept) == 200
    assert not {a.messages for a in shown} & {a.messages for a in kept}
    assert await AnchorHoldout(redis, 0.3).split(anchors) == (shown, kept)  # of another process
    few = [a for a in anchors if a.messages == kept[0].messages]
    assert await AnchorHoldout(redis, 0.3).split(few) == (few, [])
    assert await AnchorHoldout(redis, 0).split(anchors) == (anchors, [])
    for junk in (b"known", b"A" * 64, None):  # None: a key of another type
        for _ in range(5):
            await redis.delete(ANCHOR_HOLDOUT)
            await (redis.set(ANCHOR_HOLDOUT, "x") if junk is None else redis.hset(ANCHOR_HOLDOUT, "key", junk))  # type: ignore[misc, arg-type]
            replicas = [AnchorHoldout(redis, 0.3) for _ in range(4)]
            first, *others = await asyncio.gather(*(replica.split(anchors) for replica in replicas))
            assert all(other == first for other in others), "replicas that make a key at once have the same"


async def traffic(api: Api, calls: int, groups: int, size: int, seed: int) -> list[dict[str, Any]]:
    """Send live groups on new questions, one call after the other; return each group's reward."""
    random = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    for call in range(calls):
        items, images = [], {}
        for index in range(groups):
            number = 1000 * (seed + 1) + call * groups + index
            messages, shown = question(list(KINDS)[number % 3], number)
            images |= shown
            responses = [f"answer {value}" for value in random.normal(0, 1.2, size=size).round(3)]
            items.append(
                {"item_id": f"{call} {index}", "messages": messages, "responses": responses, "objective": "helpful"}
            )
        found += await api.reward_groups(items, images)
    return found


async def experts(api: Api, endpoints: Endpoints) -> dict[str, Endpoint]:
    """Enrol two honest specialists for each kind of question."""
    made = {}
    for kind in KINDS:
        for place in ("a", "b"):
            made[f"{kind}-{place}"] = endpoints.endpoint(f"{kind}-{place}", specialist(kind, salt=place))
    for endpoint in made.values():
        await api.enrol(endpoint, state="probation")
    return made


async def test_the_honeypots_of_one_step_read_the_anchors_once(
    start: Start, endpoints: Endpoints, redis: Redis
) -> None:
    async with start(anchor_share=0.5) as api:
        await specialists(api, endpoints)
        await objective(api, 360)
        await api.ok("POST", "/v1/objectives/helpful/fit")
        size = await redis.hstrlen(ANCHORS, "helpful")
        before = (await redis.info("stats"))["total_net_output_bytes"]
        await traffic(api, calls=1, groups=24, size=3, seed=1)
        await api.router.trust.honeypots.settled()
        read = (await redis.info("stats"))["total_net_output_bytes"] - before
        assert size < read < 6 * size, "24 honeypots, their pictures and those of their neighbours"


async def test_honeypot_calls_look_like_live_calls(start: Start, endpoints: Endpoints) -> None:
    async with start(anchor_share=0.5, anchor_reserve=0.5) as api:
        expert = endpoints.endpoint("chart", specialist("chart"))
        await api.enrol(expert)
        await objective(api)
        await api.ok("POST", "/v1/objectives/helpful/fit")
        at_the_fit = {words(item) for call in expert.calls for item in call["items"]}
        assert 31 < len(at_the_fit) < 55  # the others are held out
        expert.calls.clear()
        expert.headers.clear()
        live = await traffic(api, calls=6, groups=3, size=4, seed=1)
        await api.router.trust.honeypots.settled()
        assert len(live) == 18
        anchors = {f" {row['prompt']}" for row in rows(63)}
        kinds = {words(call["items"][0]) in anchors: call for call in expert.calls}
        assert set(kinds) == {True, False}
        assert len(kinds[True]["items"]) == len(kinds[False]["items"])
        seen: set[str] = set()
        for call, headers in zip(expert.calls, expert.headers, strict=True):
            sent = {words(item) for item in call["items"]}
            assert sent <= anchors or not sent & anchors
            assert not sent & at_the_fit
            assert {len(item["responses"]) for item in call["items"]} == {4}
            assert {item["objective"] for item in call["items"]} == {"Answer what was asked."}
            assert 0 < int(headers["x-mor-deadline-ms"]) <= 10_000
            ids = {item["item_id"] for item in call["items"]}
            assert all(len(name) == 32 for name in ids)
            if not call["images"]:  # a call repeated with pictures has the same ids
                assert not ids & seen
            seen |= ids
        answers = await HoneypotScores(api.router.resources.redis).all("helpful")
        assert {answer.client for answer in answers} == {"chart"}
        assert len({answer.digest for answer in answers}) == len(answers)


async def test_a_client_honest_about_anchors_only_loses_its_weight_until_it_is_honest_everywhere(
    start: Start, endpoints: Endpoints
) -> None:
    async with start(anchor_share=0.4, anchor_reserve=0.4) as api:
        await experts(api, endpoints)
        bad = endpoints.endpoint("two-faced", two_faced())
        await api.enrol(bad, state="probation")
        await objective(api, 270)
        first = await api.ok("POST", "/v1/objectives/helpful/fit")
        assert "two-faced" in first["models"]
        state: dict[str, Any] = {}
        for seed in range(12):
            await traffic(api, calls=4, groups=8, size=4, seed=seed)
            await api.router.trust.honeypots.settled()
            state = (await api.ok("GET", "/v1/clients/two-faced"))["client"]
            if state["state"] == "probation":
                break
        assert state["state"] == "probation", state
        assert state["reason"].startswith("drift for 'helpful' under gate version 1: right in ")
        others = [c["state"] for c in await api.ok("GET", "/v1/clients") if c["name"] != "two-faced"]
        assert set(others) == {"active"}
        audit = [json.loads(line) for line in api.router.resources.settings.audit_log.read_text().splitlines()]  # type: ignore[union-attr]
        assert [line["subject"] for line in audit if line["action"] == "drift"] == ["two-faced"]
        assert 'mor_router_distrusted{client="two-faced"} 1.0' in (await api.call("GET", "/metrics")).text

        second = await api.ok("POST", "/v1/objectives/helpful/fit")
        assert "distrusted" in second["report"]["left_out"]["two-faced"]
        bad.score = knowing
        for seed in range(20, 26):
            await upload(api, jsonl(rows(90, seed=seed, start=300 * seed)))
            await traffic(api, calls=6, groups=8, size=4, seed=seed)
            await api.router.trust.honeypots.settled()
            await api.ok("POST", "/v1/objectives/helpful/fit")
            state = (await api.ok("GET", "/v1/clients/two-faced"))["client"]
            if state["state"] == "active":
                break
        assert (state["state"], state["reason"]) == ("active", None)


async def test_a_client_that_recognises_every_anchor_is_reported_for_disagreement_and_keeps_its_weight(
    start: Start, endpoints: Endpoints
) -> None:
    anchors = {f" {row['prompt']}" for row in rows(180)}
    async with start() as api:
        await experts(api, endpoints)
        bad = endpoints.endpoint(
            "bad", lambda item, response: knowing(item, response) * (1 if words(item) in anchors else -1)
        )
        await api.enrol(bad, state="probation")
        await objective(api, 180)
        await api.ok("POST", "/v1/objectives/helpful/fit")
        await traffic(api, calls=20, groups=8, size=4, seed=1)
        audit = [json.loads(line) for line in api.router.resources.settings.audit_log.read_text().splitlines()]  # type: ignore[union-attr]
        assert "bad" in [line["subject"] for line in audit if line["action"] == "disagreement"]
        assert (await api.ok("GET", "/v1/clients/bad"))["client"]["state"] == "active"


async def test_a_client_with_a_new_model_has_no_weight_where_its_calibration_is_stale(
    api: Api, endpoints: Endpoints
) -> None:
    made = await experts(api, endpoints)
    for name in ("helpful", "brief"):
        await objective(api, name=name)
        await api.ok("POST", f"/v1/objectives/{name}/fit")

    async def line(name: str) -> dict[str, Any]:
        await api.router.clients.pool.refresh()
        found = await api.reward("answer 1", "answer 2", objective=name)
        return next(score for score in found["clients"] if score["client"] == "chart-a")

    made["chart-a"].version = "2"
    assert (await line("helpful"))["weight"] > 0  # the change is not known yet
    for name in ("helpful", "brief"):
        found = await line(name)
        assert (found["status"], found["weight"]) == ("shadow", 0)
        assert "serves chart-a 2; its calibration was fitted on chart-a 1" in found["detail"]
    await api.ok("POST", "/v1/objectives/helpful/fit")
    assert (await line("helpful"))["weight"] > 0
    assert (await line("brief"))["status"] == "shadow"
    for endpoint in made.values():
        endpoint.version = "3"
    for _ in range(2):
        found = await line("helpful")
    assert found["weight"] > 0  # where all are stale, an old calibration is better than none
    assert "fitted on chart-a 2" in found["detail"]
