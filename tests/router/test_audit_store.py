"""Stored audits: their number and pictures are bounded, and junk among them costs no other audit."""

from __future__ import annotations

import asyncio
import time

import pytest
from mor_router.objectives.objective_store import ObjectiveStore
from mor_router.store import key
from mor_router.trust import live_audits
from mor_router.trust.live_audits import AuditStore
from mor_router.trust.waiting_groups import WaitingGroups, audit_name
from redis.asyncio import Redis

from tests.router.conftest import Api, Start
from tests.router.planted import KINDS, picture, question
from tests.router.test_audits import AUDITS, audit
from tests.router.test_objectives import objective
from tests.router.test_online_refit import checker_package  # noqa: F401 - a fixture

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("bound", ["groups", "bytes"])
async def test_the_store_is_bounded(api: Api, bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await objective(api)
    if bound == "groups":
        monkeypatch.setattr(api.router.trust.audits.drawn, "most", 10)
    else:
        monkeypatch.setattr(api.router.trust.audits.drawn, "most_bytes", 10 << 10)
    for at in range(1, 26):
        await api.router.trust.audits.add("helpful", audit(at))
    found = await api.ok("GET", AUDITS)
    assert (found["waiting"], found["oldest"], found["closed"]) == (10, 16.0, {"dropped": 15})
    monkeypatch.setattr(live_audits, "_MOST_LABELLED", 6)
    store = api.router.trust.audits
    for number, name in enumerate(await store.waiting("helpful")):
        waiting = audit(number, responses=(f"answer {number}", "answer"))
        await store.settle("helpful", name, waiting, [(0, 1)], "people")
    await store.prune("helpful")
    assert [line.at for line in (await store.labelled("helpful")).values()] == [5, 6, 7, 8, 9]


async def test_pictures_of_pairs_that_left_are_deleted(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from mor_router.objectives import objective_store

    monkeypatch.setattr(objective_store, "_MOST_SAMPLED", 2)
    await objective(api, 9)
    before = await api.router.resources.redis.hlen("mor:{router}:images:helpful")
    for number in range(5):
        messages, images = question("chart", 9000 + number)
        shown = {digest: picture("chart", 9000 + number) for digest in images}
        waiting = audit(number + 1, messages=messages, images=shown)
        await api.router.trust.audits.add("helpful", waiting)
        [name] = await api.router.trust.audits.waiting("helpful")
        await api.router.trust.audits.settle("helpful", name, waiting, [(0, 1)], "people")
    kept = [anchor for anchor in await api.router.objectives.store.anchors("helpful") if anchor.audited]
    assert len(kept) == 2
    names = len({digest for anchor in kept for message in anchor.messages for digest in message.image_hashes})
    assert await api.router.resources.redis.hlen("mor:{router}:images:helpful") <= before + names
    assert all((await api.router.objectives.store.images("helpful", kept)).values())


async def test_entries_that_do_not_fit_stop_nothing(api: Api) -> None:
    await objective(api)
    redis, store = api.router.resources.redis, api.router.trust.audits
    await store.add("helpful", audit(5))
    [name] = await store.waiting("helpful")
    sound = await redis.hget("mor:{router}:audits:helpful", name)
    for number, junk in enumerate(
        ("{}", "\xff", '{"at":1e999}', sound.decode().replace('"pair":[0,1]', '"pair":[0,7]'))
    ):
        await redis.hset("mor:{router}:audits:helpful", f"{1:012x}-1-junk{number}", junk)
        await redis.hset("mor:{router}:audited:helpful", f"junk {junk}", junk)
        await redis.hset("mor:{router}:tally:helpful", "labelled", junk)
    await redis.hset("mor:{router}:audits:helpful", b"no name \xfe", "{}")
    await api.router.learning.audit_labelling.turn()
    assert (await api.ok("GET", AUDITS))["waiting"] == 5
    assert (await api.ok("GET", f"{AUDITS}/next"))["audit"] == name
    assert (await api.ok("GET", "/v1/audits/clients")) == []
    assert (await api.ok("GET", AUDITS))["closed"] == {"dropped": 4}


async def test_junk_among_audits_costs_no_other_audit(start: Start) -> None:
    async with start() as api:
        await objective(api)
        redis, audits = api.router.resources.redis, api.router.trust.audits
        waiting, labelled, tally = (key(kind, "helpful") for kind in ("audits", "audited", "tally"))
        first, second = audit(time.time(), text="one"), audit(time.time() + 1, text="two")
        await audits.add("helpful", first)
        await redis.hset(waiting, "ffffffffffff-ffffffff-x", "a name that states four tebibytes")  # type: ignore[misc]
        await redis.hset(waiting, b"\xff", "x")  # type: ignore[misc]
        await audits.add("helpful", second)
        names = await audits.waiting("helpful")
        assert len(names) == 2, "no size that a forged name states makes others go"
        await redis.hset(labelled, "not a digest", "{}")  # type: ignore[misc]
        await redis.hset(tally, "labelled", "many")  # type: ignore[misc]
        assert await audits.settle("helpful", names[0], first, [(0, 1)], "ann")
        assert (len(await audits.labelled("helpful")), await audits.closed("helpful")) == (1, {"labelled": 1})
        for place in (labelled, tally):
            await redis.delete(place)
            await redis.set(place, "of another type")
        assert (await api.ok("GET", AUDITS))["labelled"] == 0
        assert await audits.settle("helpful", names[1], second, [(1, 0)], "ann")
        assert (len(await audits.labelled("helpful")), await audits.closed("helpful")) == (1, {"labelled": 1})
        await redis.set(waiting, "of another type")
        assert await audits.waiting("helpful") == []
        await audits.add("helpful", second)
        [name] = await audits.waiting("helpful")
        await redis.rpush(key("auditor", "helpful", name), "of another type")  # type: ignore[misc]
        assert (await api.ok("GET", f"{AUDITS}/next"))["audit"] == name


async def test_no_audit_brings_a_picture_under_the_hash_of_another(start: Start) -> None:
    """The pictures of a labelled audit become those of an anchor."""
    async with start() as api:
        await objective(api)
        messages, shown = question(next(iter(KINDS)), 5000)
        forged = audit(time.time(), images=dict.fromkeys(shown, b"another"), messages=messages)
        await api.router.trust.audits.add("helpful", forged)
        [name] = await api.router.trust.audits.waiting("helpful")
        assert await api.router.trust.audits.get("helpful", name) is None
        assert await api.router.trust.audits.waiting("helpful") == []


async def test_of_several_labels_one_counts_whatever_became_of_its_claim(redis: Redis) -> None:
    """The server's clock was set back a little since the claim was made, or somebody took its end away."""
    store, place = AuditStore(redis, ObjectiveStore(redis)), key("given", "o", "n")
    for left_ms in (None, 900_500, 10**9):
        await redis.set(place, "first ann", px=left_ms)
        first = [await store.claim("o", "n", label) for label in ("first ann", "second bob", "first ann")]
        assert first == [True, False, True], left_ms
        assert 0 < await redis.ttl(place) <= 2 * 900
    await redis.delete(place)
    await redis.rpush(place, "junk")
    assert [await store.claim("o", "n", label) for label in ("second bob", "first ann")] == [True, False]


async def test_a_group_that_is_stored_anew_beside_a_look_at_junk_stays(redis: Redis) -> None:
    groups, whole = WaitingGroups(redis, "audits", 10), audit(1)
    name = audit_name(whole, 1.0)
    for _ in range(30):
        await redis.hset(key("audits", "o"), name, "junk")
        await asyncio.gather(*(groups.get("o", name) for _ in range(4)), groups.put("o", name, whole))
        assert (await groups.get("o", name))[0] == whole
