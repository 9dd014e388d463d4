"""Objectives: anchor uploads, fits and their accuracy, gate versions, roll-back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest
from mor_core.stored_objectives import NewObjective
from mor_router.objectives.objective_store import ObjectiveStore
from mor_router.state_mark import begin_state
from mor_router.store import OBJECTIVES
from redis.asyncio import Redis

from tests.router.conftest import TOKENS, Api, Start
from tests.router.endpoints import Endpoint, Endpoints, quality
from tests.router.planted import KINDS, jsonl, picture, question, rows, specialist

pytestmark = pytest.mark.anyio

NDJSON = {"Authorization": f"Bearer {TOKENS['admin']}", "Content-Type": "application/x-ndjson"}


async def upload(api: Api, content: bytes, name: str = "helpful") -> httpx.Response:
    return await api.http.put(f"/v1/objectives/{name}/anchors", content=content, headers=NDJSON)


async def objective(api: Api, count: int = 63, name: str = "helpful") -> None:
    await api.ok("POST", "/v1/objectives", {"name": name, "text": "Answer what was asked."})
    assert (await upload(api, jsonl(rows(count)), name)).status_code == 200


async def specialists(api: Api, endpoints: Endpoints, **scale_and_shift: tuple[float, float]) -> dict[str, Endpoint]:
    made = {}
    for kind in KINDS:
        scale, shift = scale_and_shift.get(kind, (1.0, 0.0))
        made[kind] = endpoints.endpoint(kind, specialist(kind, scale, shift))
        await api.enrol(made[kind], state="probation")
    return made


async def held_out(api: Api) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return, by kind, the margins of the better response by the router and by the right specialist alone."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    oracle: dict[str, list[float]] = {kind: [] for kind in KINDS}
    random = np.random.default_rng(5)
    items = []
    images: dict[str, str] = {}
    for index in range(90):
        kind = list(KINDS)[index % 3]
        better, worse = sorted(random.normal(0, 1.2, size=2).round(3).tolist(), reverse=True)
        messages, shown = question(kind, index + 500)
        images |= shown
        items.append(
            {
                "item_id": f"{kind} {index}",
                "messages": messages,
                "responses": [f"answer {better}", f"answer {worse}"],
                "objective": "helpful",
            }
        )
        first, second = (specialist(kind)(items[-1], response) for response in items[-1]["responses"])
        oracle[kind].append(first - second)
    for item in (await api.ok("POST", "/v1/reward", {"items": items, "images": images}))["items"]:
        assert item["status"] == "ok", item
        found[item["item_id"].split()[0]].append(item["rewards"][0] - item["rewards"][1])
    return found, oracle


async def test_a_fit_finds_each_specialist_and_keeps_it_for_its_domain(api: Api, endpoints: Endpoints) -> None:
    await specialists(api, endpoints)
    await objective(api)
    gate = await api.ok("POST", "/v1/objectives/helpful/fit")
    report = gate["report"]
    assert report["pairs"] == 63
    assert report["held_out_accuracy"]["value"] > report["uniform_accuracy"]["value"] + 0.2
    for line in report["clients"]:
        own = line["client"]
        others = [kind for kind in KINDS if kind != own]
        assert line["accuracy_by_domain"][own]["value"] > 0.75
        assert line["accuracy"]["value"] < 0.6  # over all, the specialist looks worse than useless
        assert line["evidence_by_domain"][own] > 3 * max(line["evidence_by_domain"][kind] for kind in others)
        assert line["weight_by_domain"][own] > max(line["weight_by_domain"][kind] for kind in others)
    clients = await api.ok("GET", "/v1/clients")
    assert {client["state"] for client in clients} == {"active"}  # weight was earned
    fused, oracle = ({kind: np.mean(np.array(d) > 0) for kind, d in part.items()} for part in await held_out(api))
    for kind in KINDS:
        assert fused[kind] >= oracle[kind] - 0.05, (fused, oracle)
    for kind in KINDS:
        messages, images = question(kind, 77)
        route = await api.ok("POST", "/v1/route", {"messages": messages, "images": images, "objective": "helpful"})
        assert route["gate_version"] == gate["version"]
        influence = {line["client"]: line["influence"] for line in route["clients"]}
        assert max(influence, key=lambda name: influence[name]) == kind
        assert influence[kind] > 0.7
        assert route["ood_score"] < 0.2
    strange = [
        {"role": "user", "content": "Translate the second verse of the poem into Portuguese, keeping its metre."}
    ]
    route = await api.ok("POST", "/v1/route", {"messages": strange, "objective": "helpful"})
    assert route["ood_score"] > 0.9  # nothing is known of who is good at that
    assert all(line["weight"] == pytest.approx(1 / 3, abs=0.03) for line in route["clients"])


async def test_scale_and_shift_of_a_client_change_no_reward(start: Start, endpoints: Endpoints) -> None:
    rewards = []
    for moved in ({}, {"chart": (1e6, -1e6), "medical": (1e-3, 0.0)}, {"detail": (1e3, 1e6)}):
        async with start() as api:
            await api.router.resources.redis.flushall()
            await api.router.state_backup.try_check()  # begins without clients
            await api.router.clients.pool.refresh()
            await specialists(api, endpoints, **moved)
            await objective(api)
            await api.ok("POST", "/v1/objectives/helpful/fit")
            rewards.append([value for values in (await held_out(api))[0].values() for value in values])
    np.testing.assert_allclose(rewards[1], rewards[0], atol=1e-6)
    np.testing.assert_allclose(rewards[2], rewards[0], atol=1e-6)


async def test_without_anchors_the_mixture_is_uniform_with_a_note(api: Api, endpoints: Endpoints) -> None:
    for name, scale in (("a", 1.0), ("b", 1e4)):
        await api.enrol(endpoints.endpoint(name, lambda item, response, scale=scale: scale * quality(response)))
    await api.enrol(endpoints.endpoint("newcomer"), state="probation")
    found = await api.reward("answer 1", "answer 2", "answer 5", objective="unknown")
    assert found["gate_version"] == 0
    assert found["note"].startswith("cold start, uniform over the active clients: no objective is named 'unknown'")
    lines = {line["client"]: line for line in found["clients"]}
    assert (lines["a"]["weight"], lines["b"]["weight"], lines["newcomer"]["weight"]) == (0.5, 0.5, 0)
    np.testing.assert_allclose(lines["a"]["calibrated"], lines["b"]["calibrated"])  # scales are evened out
    assert lines["newcomer"]["status"] == "shadow"
    assert found["rewards"] == sorted(found["rewards"])
    flat = await api.reward("answer 1", "answer 1", "answer 1")
    assert len(set(flat["rewards"])) == 1


async def test_an_indifferent_group_gets_equal_rewards_from_a_fitted_gate(api: Api, endpoints: Endpoints) -> None:
    made = await specialists(api, endpoints)
    await objective(api)
    await api.ok("POST", "/v1/objectives/helpful/fit")
    for endpoint in made.values():
        endpoint.score = lambda item, response: 0.25
    found = await api.reward("one", "two", "three", "four", text=KINDS["chart"].format(1), objective="helpful")
    assert np.ptp(found["rewards"]) == 0


async def test_anchors_are_scored_once_for_each_model_version(api: Api, endpoints: Endpoints) -> None:
    made = await specialists(api, endpoints)
    await objective(api)
    await api.ok("POST", "/v1/objectives/helpful/fit")
    scored = [item for call in made["chart"].calls for item in call["items"]]
    assert len({item["item_id"] for item in scored}) == 63
    first = sum(item["responses"][0] > item["responses"][1] for item in scored)
    assert 15 < first < 90  # the order does not give the preferred response away
    for endpoint in made.values():
        endpoint.calls.clear()
    made["medical"].version = "2"
    again = await api.ok("POST", "/v1/objectives/helpful/fit")
    assert [len(made[kind].calls) for kind in ("chart", "detail")] == [0, 0]
    assert len({item["item_id"] for call in made["medical"].calls for item in call["items"]}) == 63
    assert again["models"]["medical"] == {"name": "medical", "version": "2"}


async def test_a_client_that_cannot_score_the_anchors_is_left_out_with_the_reason(
    api: Api, endpoints: Endpoints
) -> None:
    made = await specialists(api, endpoints)
    await objective(api)
    made["detail"].mangle = lambda items: [
        {**item, "status": "unscorable", "scores": None, "detail": "no photo"} for item in items
    ]
    gate = await api.ok("POST", "/v1/objectives/helpful/fit")
    assert gate["report"]["left_out"] == {"detail": "scored 0 of 63 shown anchors: no photo"}
    assert sorted(line["client"] for line in gate["report"]["clients"]) == ["chart", "medical"]
    made["detail"].mangle = None
    found = await api.reward("answer 1", "answer 2", objective="helpful")
    line = next(line for line in found["clients"] if line["client"] == "detail")
    assert (line["status"], line["weight"]) == ("shadow", 0)


async def test_gate_versions_are_stored_recorded_and_rolled_back(api: Api, endpoints: Endpoints) -> None:
    await specialists(api, endpoints)
    await objective(api)
    first = await api.ok("POST", "/v1/objectives/helpful/fit")
    second = await api.ok("POST", "/v1/objectives/helpful/fit", {"activate": False})
    assert (await api.reward("answer 1", "answer 2", objective="helpful"))["gate_version"] == first["version"]
    await api.ok("POST", f"/v1/objectives/helpful/gates/{second['version']}/activate")
    assert (await api.reward("answer 1", "answer 2", objective="helpful"))["gate_version"] == second["version"]
    listed = await api.ok("GET", "/v1/objectives/helpful/gates")
    assert [gate["version"] for gate in listed] == [first["version"], second["version"]]
    full = await api.ok("GET", f"/v1/objectives/helpful/gates/{first['version']}")
    assert full["parameters"]["clients"] == ["chart", "detail", "medical"]
    assert (await api.ok("POST", "/v1/objectives/helpful/gates/rollback"))["active"] == first["version"]
    assert (await api.reward("answer 1", "answer 2", objective="helpful"))["gate_version"] == first["version"]
    refused = await api.call("POST", "/v1/objectives/helpful/gates/rollback")
    assert refused.status_code == 409 and "--to-uniform" in refused.json()["detail"]
    assert (await api.ok("POST", "/v1/objectives/helpful/gates/rollback?to_uniform=true"))["active"] == 0
    assert "cold start" in (await api.reward("answer 1", "answer 2", objective="helpful"))["note"]
    none = await api.call("POST", "/v1/objectives/helpful/gates/rollback")
    assert none.status_code == 409
    forward = await api.ok("POST", f"/v1/objectives/helpful/gates/{second['version']}/activate")
    assert forward["active"] == second["version"]
    assert (await api.call("POST", "/v1/objectives/helpful/gates/99/activate")).status_code == 404


async def test_a_run_may_pin_a_gate_version(api: Api, endpoints: Endpoints) -> None:
    await specialists(api, endpoints)
    await objective(api)
    first = (await api.ok("POST", "/v1/objectives/helpful/fit"))["version"]
    await api.ok("PATCH", "/v1/clients/chart", {"state": "paused"})
    second = (await api.ok("POST", "/v1/objectives/helpful/fit"))["version"]
    await api.ok("PATCH", "/v1/clients/chart", {"state": "active"})
    for requested, version, expected in (("helpful", second, "shadow"), (f"helpful@{first}", first, "ok")):
        for wanted in (requested, {requested: 1.0}):
            found = await api.reward("answer 1", "answer 2", objective=wanted)
            assert found["gate_version"] == version
            assert next(line for line in found["clients"] if line["client"] == "chart")["status"] == expected
    route = {"messages": [{"role": "user", "content": "?"}], "objective": "helpful@99"}
    assert (await api.call("POST", "/v1/route", route)).status_code == 404
    none = await api.reward("answer 1", "answer 2", objective="helpful@99")
    assert (none["status"], none["rewards"]) == ("error", None)
    assert "has no gate version 99" in none["detail"]
    for misspelt in ("helpfull@1", " ", ""):  # no text that a similar objective could stand for
        none = await api.reward("answer 1", "answer 2", objective=misspelt)
        assert (none["status"], none["rewards"]) == ("error", None)
        assert "no objective" in none["detail"]


async def test_an_objective_is_found_by_a_similar_text(api: Api, endpoints: Endpoints) -> None:
    await specialists(api, endpoints)
    await objective(api)
    gate = await api.ok("POST", "/v1/objectives/helpful/fit")
    found = await api.reward("answer 1", "answer 2", objective="answer what was asked, please")
    assert found["gate_version"] == gate["version"]
    assert "by its text" in found["note"]


async def test_a_new_model_version_is_reported_until_the_next_fit(api: Api, endpoints: Endpoints) -> None:
    made = await specialists(api, endpoints)
    await objective(api)
    await api.ok("POST", "/v1/objectives/helpful/fit")
    made["chart"].version = "2"
    found = await api.reward("answer 1", "answer 2", objective="helpful")
    line = next(line for line in found["clients"] if line["client"] == "chart")
    assert "fitted on chart 1; fit the objective again" in line["detail"]


async def test_a_gate_is_not_used_with_another_embedder(start: Start, endpoints: Endpoints) -> None:
    async with start() as api:
        await specialists(api, endpoints)
        await objective(api)
        gate = await api.ok("POST", "/v1/objectives/helpful/fit")
        stored = await api.router.objectives.gates.get("helpful", gate["version"])
        await api.router.objectives.gates.put(stored.model_copy(update={"embedder": "another"}))
    async with start() as api:
        item = {"item_id": "g", "messages": [{"role": "user", "content": "?"}], "responses": ["a 1", "b 2"]}
        answer = await api.ok("POST", "/v1/reward", {"items": [{**item, "objective": "helpful"}]})
        assert answer["items"][0]["rewards"] is None
        assert "fitted with embedder another" in answer["items"][0]["detail"]


async def test_multipart_uploads_contain_their_pictures(api: Api, endpoints: Endpoints) -> None:
    await specialists(api, endpoints)
    await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer."})
    made = rows(12, images=False)
    files = [("images", (f"images/{i}.png", picture(row["domain"], i), "image/png")) for i, row in enumerate(made)]
    for index, row in enumerate(made):
        row["images"] = [f"images/{index}.png"]
    content = ("anchors", ("anchors.jsonl", jsonl(made), "application/x-ndjson"))
    headers = {"Authorization": f"Bearer {TOKENS['admin']}"}
    answer = await api.http.put("/v1/objectives/helpful/anchors", files=[content, *files], headers=headers)
    assert answer.json()["anchors"] == 12, answer.text
    assert (await api.ok("POST", "/v1/objectives/helpful/fit"))["report"]["pairs"] == 12


def broken_row(index: int, **change: Any) -> bytes:
    made = rows(10)
    made[index] = {name: value for name, value in {**made[index], **change}.items() if value is not None}
    return jsonl(made)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (broken_row(3, chosen=None), "anchors.jsonl:4: column 'chosen' is missing"),
        (broken_row(3, choosen="x"), "anchors.jsonl:4: unknown column 'choosen'"),
        (
            broken_row(0, images=["data:image/png;base64,AAAA"]),
            "anchors.jsonl:1: images: data URI: not a readable image",
        ),
        (broken_row(2, images=["../../etc/passwd"]), "anchors.jsonl:3: images: '../../etc/passwd' is not below"),
        (broken_row(2, images=["/etc/hostname"]), "anchors.jsonl:3: images: '/etc/hostname' is not below"),
        (broken_row(2, images=["gone.png"]), "anchors.jsonl:3: images: no file 'gone.png' in the data file's folder"),
        (broken_row(2, images=["anchors.jsonl"]), "anchors.jsonl:3: images: anchors.jsonl: not a readable image"),
        (broken_row(2, images=[{"path": "/etc/hostname"}]), "anchors.jsonl:3: images: '/etc/hostname' is not below"),
        (
            broken_row(2, images=[{"bytes": 10**12}]),
            "anchors.jsonl:3: images: got {bytes: int}; give Parquet's {bytes: binary, path: string}",
        ),
        (broken_row(5, prompt=" ", images=["/etc/hostname"]), "anchors.jsonl:6: images: '/etc/hostname'"),
        (b'{"prompt": \n', "anchors.jsonl:1: not JSON"),
        (b"", "anchors.jsonl:1: the file has no rows"),
    ],
)
async def test_a_bad_line_is_named_and_nothing_is_stored(api: Api, content: bytes, expected: str) -> None:
    await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer."})
    answer = await upload(api, content)
    assert answer.status_code == 422
    assert expected in answer.json()["detail"]
    assert "/tmp" not in answer.text
    assert (await api.ok("GET", "/v1/objectives/helpful"))["anchors"] == 0


async def test_impossible_fits_fail_with_the_reason(api: Api, endpoints: Endpoints) -> None:
    missing = await api.call("POST", "/v1/objectives/helpful/fit")
    assert (missing.status_code, "no objective 'helpful'" in missing.text) == (404, True)
    await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer."})
    empty = await api.call("POST", "/v1/objectives/helpful/fit")
    assert (empty.status_code, "has no anchors" in empty.text) == (409, True)
    await upload(api, jsonl(rows(4)))
    few = await api.call("POST", "/v1/objectives/helpful/fit")
    assert (few.status_code, "has 4 anchors; at least 8" in few.text) == (422, True)
    await upload(api, jsonl(rows(9)))
    nobody = await api.call("POST", "/v1/objectives/helpful/fit")
    assert (nobody.status_code, "none is enrolled" in nobody.text) == (503, True)
    strange = await api.http.put(
        "/v1/objectives/helpful/anchors", content=b"x", headers={**NDJSON, "Content-Type": "text/csv"}
    )
    assert "send application/x-ndjson" in json.loads(strange.text)["detail"]


async def test_anchors_that_are_set_beside_a_change_of_the_objective_leave_it(redis: Redis) -> None:
    """Pictures take long to send; meanwhile a version is activated, or the objective removed."""
    store, pictures = ObjectiveStore(redis), {"0" * 64: bytes(16 << 20)}
    await begin_state(redis)
    for version in range(1, 4):
        await store.add(NewObjective(name="helpful", text="Answer what was asked."))
        await asyncio.gather(store.put_anchors("helpful", (), pictures), store.activate("helpful", version))
        assert (await store.get("helpful")).active == version
        put = asyncio.create_task(store.put_anchors("helpful", (), pictures))
        await asyncio.gather(put, store.remove("helpful"), return_exceptions=True)
        assert await redis.hlen(OBJECTIVES) == 0
