"""Labels by people: one per person and question, compared with a second person's, and withdrawn together."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from mor_core.auth import hash_token
from mor_router.config import RouterSettings
from mor_router.store import key
from mor_router.trust.audit_types import LabelledAudit

from tests.router.conftest import TOKENS, Api, Start
from tests.router.test_audits import AUDITS, audit
from tests.router.test_objectives import objective

pytestmark = pytest.mark.anyio

PEOPLE = {name: f"token-of-{name}" for name in ("ann", "bob", "labeller/1")}


@pytest.fixture
def people(settings: RouterSettings) -> None:
    """Add people's tokens to the tokens file."""
    assert settings.tokens_file is not None
    rows = json.loads(settings.tokens_file.read_text())
    rows += [{"name": name, "scope": "labeller", "sha256": hash_token(token)} for name, token in PEOPLE.items()]
    settings.tokens_file.write_text(json.dumps(rows))


async def wait(api: Api, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        await api.router.trust.audits.add("helpful", audit(time.time() - 60 + number, text=f"question {number}"))


async def answer(api: Api, person: str, preferred: str) -> dict[str, Any] | None:
    """Let ``person`` label the group that is offered; return the group."""
    token = PEOPLE.get(person, TOKENS["labeller"])
    shown: dict[str, Any] | None = await api.ok("GET", f"{AUDITS}/next", token=token)
    if shown is not None:
        await api.ok("POST", f"{AUDITS}/{shown['audit']}", {"preferred": preferred}, token=token)
    return shown


async def lines(api: Api) -> dict[str, dict[str, Any]]:
    return {line.pop("person"): line for line in await api.ok("GET", "/v1/audits/people")}


async def anchors(api: Api) -> list[str]:
    return [anchor.chosen for anchor in await api.router.objectives.store.anchors("helpful") if anchor.audited]


@pytest.mark.parametrize("second", ["first", "tie"])
async def test_of_two_labels_at_a_time_by_one_person_one_counts(start: Start, people: None, second: str) -> None:
    async with start() as api:
        await objective(api)
        for turn in range(8):
            await wait(api, 1, turn)
            shown = await api.ok("GET", f"{AUDITS}/next", token=PEOPLE["ann"])
            place = f"{AUDITS}/{shown['audit']}"
            bodies = [{"preferred": preferred} for preferred in ("second", second) * 2]
            found = await asyncio.gather(*(api.call("POST", place, body, token=PEOPLE["ann"]) for body in bodies))
            assert {reply.status_code for reply in found} <= {204, 404, 409}
        line = (await lines(api))["ann"]
        assert line["labels"] + line["undecided"] == 8
        closed = (await api.ok("GET", AUDITS))["closed"]
        assert sum(closed.values()) == 8
        stored = (await api.router.trust.audits.labelled("helpful")).values()
        questions = [
            anchor.messages for anchor in await api.router.objectives.store.anchors("helpful") if anchor.audited
        ]
        assert len(stored) == len(questions) == line["labels"], "no question has two opposite pairs"


async def test_a_liar_is_found_by_second_opinions_and_its_labels_withdrawn(start: Start, people: None) -> None:
    async with start(audit_second_share=1.0) as api:
        await objective(api)
        await wait(api, 14)
        asked: dict[str, list[str]] = {name: [] for name in ("ann", "bob", "labeller/1")}
        for turn in range(60):
            person = list(asked)[turn % 3]
            shown = await answer(api, person, "second" if person == "bob" else "first")
            if shown is not None:
                text = shown["messages"][0]["content"]
                assert text not in asked[person], "nobody is asked about their own label"
                asked[person].append(text)
        found = await lines(api)
        assert found["bob"]["disagreed"] == found["bob"]["compared"] > 4
        assert found["bob"]["disagreement_interval"][0] > 0.4
        for honest in ("ann", "labeller/1"):
            assert found[honest]["disagreed"] < found[honest]["compared"], found
        state = await api.ok("GET", AUDITS)
        assert (state["waiting"], state["closed"]["disputed"] > 0) == (0, True)
        assert "no" in await anchors(api) or found["bob"]["labels"] == 0
        await wait(api, 3, 20)
        for _ in range(3):
            await answer(api, "bob", "second")
        own = (await lines(api))["bob"]["labels"]
        gone = await api.ok("DELETE", "/v1/audits/labels?by=bob")
        assert gone == {"person": "bob", "withdrawn": {"helpful": own}} and own >= 3
        assert "bob" not in await lines(api) and "no" not in await anchors(api)
        assert "yes" in await anchors(api), "the others' labels stay"
        state = await api.ok("GET", AUDITS)
        assert (state["waiting"], state["closed"]["withdrawn"]) == (0, own), "no second opinion on them is waited for"
        [line] = [entry for entry in _log(api) if entry["action"] == "withdraw"]
        assert (line["subject"], line["by"], line["labels"]) == ("bob", "admin", own)
        again = await api.call("DELETE", "/v1/audits/labels?by=bob")
        assert (again.status_code, "GET /v1/audits/people" in again.json()["detail"]) == (404, True)
        slashed = await api.ok("DELETE", "/v1/audits/labels?by=labeller%2F1")
        assert slashed["withdrawn"]["helpful"] > 0


def _log(api: Api) -> list[dict[str, Any]]:
    path = api.router.resources.settings.audit_log
    assert path is not None
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_second_opinion_looks_like_any_other_group(start: Start, people: None) -> None:
    async with start(audit_second_share=1.0) as api:
        await objective(api)
        await wait(api, 2)
        await answer(api, "bob", "skip")  # so that a second person is known
        before = await answer(api, "ann", "first")
        assert before is not None
        await wait(api, 1, 100)
        assert (await api.ok("GET", AUDITS))["waiting"] == 2
        token = PEOPLE["bob"]
        shown = await api.ok("GET", f"{AUDITS}/next", token=token)
        assert shown["audit"] != before["audit"] and shown["audit"][:10] > before["audit"][:10]
        assert {**shown, "audit": "", "waiting": 0, "labelled": 0} == {
            **before, "audit": "", "waiting": 0, "labelled": 0,
        }  # fmt: skip
        own = await api.call("POST", f"{AUDITS}/{shown['audit']}", {"preferred": "first"}, token=PEOPLE["ann"])
        assert own.status_code == 404, "nobody confirms their own label"
        await api.ok("POST", f"{AUDITS}/{shown['audit']}", {"preferred": "first"}, token=token)
        found = await lines(api)
        assert [(found[name]["compared"], found[name]["disagreed"]) for name in ("ann", "bob")] == [(1, 0), (1, 0)]
        assert await anchors(api) == ["yes"]


async def test_one_person_alone_waits_for_nobody(start: Start, people: None) -> None:
    async with start(audit_second_share=1.0) as api:
        await objective(api)
        await wait(api, 3)
        while await answer(api, "ann", "first") is not None:
            pass
        assert ((await api.ok("GET", AUDITS))["waiting"], len(await anchors(api))) == (0, 3)


async def test_an_admin_alone_sees_people_and_withdraws(start: Start, people: None) -> None:
    async with start() as api:
        for scope in ("labeller", "viewer", "service"):
            for method, path in (("GET", "/v1/audits/people"), ("DELETE", "/v1/audits/labels?by=ann")):
                assert (await api.call(method, path, token=TOKENS[scope])).status_code == 403


async def test_forged_entries_of_people_stop_nothing(start: Start, people: None) -> None:
    async with start(audit_second_share=1.0) as api:
        await objective(api)
        redis = api.router.resources.redis
        await wait(api, 3)
        await answer(api, "bob", "skip")
        for kind in ("second", "people"):
            place = key(kind, "helpful")
            for field in (b"\xff", f"{int(1000 * time.time()):012x}-1-junk", '["ann", "compared"]', '["ann", "x"]'):
                await redis.hset(place, field, "junk")
        await answer(api, "ann", "first")
        assert (await lines(api))["ann"]["labels"] == 1
        await answer(api, "bob", "first")
        assert (await lines(api))["ann"]["labels"] >= 1
        for kind in ("second", "people"):
            await redis.delete(key(kind, "helpful"))
            await redis.set(key(kind, "helpful"), "of another type")
        await api.ok("GET", "/v1/audits/people")
        await wait(api, 2, 10)
        assert await answer(api, "ann", "first") is not None
        assert (await lines(api))["ann"]["labels"] >= 2
        await api.ok("DELETE", "/v1/audits/labels?by=ann")


@pytest.mark.parametrize("kind", ["auditor", "given"])
async def test_a_forged_offer_or_claim_without_an_end_holds_no_group(start: Start, people: None, kind: str) -> None:
    async with start() as api:
        await objective(api)
        await wait(api, 1)
        [name] = await api.router.trust.audits.waiting("helpful")
        for ends_in_s in (None, 10**9):
            await api.router.resources.redis.set(key(kind, "helpful", name), "somebody", ex=ends_in_s)
            place, body = f"{AUDITS}/{name}", {"preferred": "first"}
            found = [(await api.call("POST", place, body, token=PEOPLE["ann"])).status_code for _ in range(2)]
            if 204 in found:
                break
        assert 204 in found
        assert (await lines(api))["ann"]["labels"] == 1


def test_labels_of_earlier_versions_have_their_person() -> None:
    line = audit(5.0)
    stored = {name: getattr(line, name) for name in LabelledAudit.model_fields if hasattr(line, name)}
    by = {
        given: LabelledAudit(**stored, labelled_at=6.0, by=given, by_person=None).person
        for given in ("ann", "labeller")
    }
    assert by == {"ann": "ann", "labeller": None}
