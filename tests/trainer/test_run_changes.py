"""Tags, notes, and what people take along of a run: the CSV file of its figures, and one prompt over the steps."""

from __future__ import annotations

import asyncio
import csv
import io
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from mor_core.run_change import MOST_TAGS
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.control import metrics_csv
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.reporting import samples as reporting
from redis.asyncio import Redis

from tests.trainer.control import Worker, claim, create, eventually, lines
from tests.trainer.kit import bearer, served
from tests.trainer.test_status import sample

pytestmark = pytest.mark.anyio


async def change(http: httpx.AsyncClient, run: str, **body: Any) -> httpx.Response:
    return await http.patch(f"/v1/runs/{run}", json=body)


async def test_tags_and_note_are_kept_and_changed_by_part(http: httpx.AsyncClient, spec: RunSpec) -> None:
    run = await create(http, spec)
    found = (await http.get(f"/v1/runs/{run}")).json()
    assert (found["tags"], found["note"]) == ([], None)
    await change(http, run, add_tags=["später", "baseline"], note=" the first one ")
    found = (await change(http, run, add_tags=["b2"], remove_tags=["später", "never-there"])).json()
    assert (found["tags"], found["note"]) == (["b2", "baseline"], "the first one")
    assert (await http.get("/v1/runs")).json()[0]["tags"] == ["b2", "baseline"]
    assert (await change(http, run, note="")).json()["note"] is None


async def test_changes_of_many_people_at_once_are_all_kept(http: httpx.AsyncClient, spec: RunSpec) -> None:
    run = await create(http, spec)
    replies = await asyncio.gather(*(change(http, run, add_tags=[f"t{number:02}"]) for number in range(MOST_TAGS)))
    assert {reply.status_code for reply in replies} == {200}
    assert (await http.get(f"/v1/runs/{run}")).json()["tags"] == [f"t{number:02}" for number in range(MOST_TAGS)]
    refused = await change(http, run, add_tags=["more"])
    assert refused.status_code == 409
    assert "21 tags, and may have 20; remove some" in refused.json()["detail"]


@pytest.mark.parametrize("tag", ["", "two words", "a,b", "x" * 41, "\u202eevil", "-first"])
async def test_a_tag_is_one_short_word(http: httpx.AsyncClient, spec: RunSpec, tag: str) -> None:
    run = await create(http, spec)
    assert (await change(http, run, add_tags=[tag])).status_code == 422
    assert (await http.get(f"/v1/runs/{run}")).json()["tags"] == []


async def test_a_change_reaches_people_who_follow_the_run(settings: ControlSettings, spec: RunSpec) -> None:
    async with served(create_app(settings)) as address, httpx.AsyncClient(base_url=address) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        before = await http.get(f"/v1/runs/{run}")
        await change(http, run, note="look")
        [event] = await lines(http, run, 1, before.json()["cursor"])
        assert event["event"] == "change"
        tag = {"If-None-Match": before.headers["etag"]}
        settled = await http.get(f"/v1/runs/{run}", headers=tag)
        assert settled.status_code == 200
        await change(http, run, note="look")
        tag = {"If-None-Match": settled.headers["etag"]}
        assert (await http.get(f"/v1/runs/{run}", headers=tag)).status_code == 304, "the same note again is no change"


async def test_only_admins_change_and_clients_see_nothing_of_it(http: httpx.AsyncClient, spec: RunSpec) -> None:
    run = await create(http, spec)
    await change(http, run, add_tags=["internal"], note="beta is slow")
    for scope in ("viewer", "client", "service"):
        reply = await http.patch(f"/v1/runs/{run}", json={"note": "mine"}, headers=bearer(scope))
        assert reply.status_code == 403
    shown = (await http.get(f"/v1/runs/{run}", headers=bearer("client"))).json()
    assert (shown["tags"], shown["note"]) == (None, None)
    assert (await http.get(f"/v1/runs/{run}", headers=bearer("viewer"))).json()["tags"] == ["internal"]
    assert (await change(http, "nope", note="x")).status_code == 404


async def test_the_csv_file_has_every_step_and_every_evaluation(
    http: httpx.AsyncClient, spec: RunSpec, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_csv, "_ROWS", 3)
    run = await create(http, spec)
    worker = Worker(redis, run, (await claim(http))["attempt"])
    await worker.report("evaluation", 0, {"step": 0, "reward": -0.5, "clients": {"alpha": 1.5}})
    for step in range(1, 8):
        await worker.step(step, step / 8)
    late = {"reward_mean": 1.0, "clients": {"=2+3": {"reward_mean": 0.25}}, "applied": ["g1", "g2"]}
    await worker.report("step", 8, late)
    await worker.report("evaluation", 8, {"step": 8, "reward": 0.5, "clients": {}})
    await eventually(http, f"/v1/runs/{run}/metrics", lambda found: len(found["evaluations"]) == 2)

    reply = await http.get(f"/v1/runs/{run}/metrics.csv", headers=bearer("viewer"))
    assert reply.headers["content-type"].startswith("text/csv")
    assert f'filename="{run}.csv"' in reply.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(reply.text)))
    assert [int(row["step"]) for row in rows] == list(range(9))
    assert [row["reward_mean"] for row in rows] == ["", *(str(step / 8) for step in range(1, 9))]
    assert (rows[0]["evaluation.reward"], rows[0]["evaluation.clients.alpha"]) == ("-0.5", "1.5")
    assert (rows[8]["evaluation.reward"], rows[8]["clients.=2+3.reward_mean"]) == ("0.5", "0.25")
    assert (rows[1]["clients.alpha.weight"], rows[1]["gate_version"]) == ("1.0", "1")
    assert datetime.fromisoformat(rows[1]["at"]).tzinfo is not None
    assert "applied" not in rows[0]
    assert not [name for name in rows[0] if name.startswith(tuple("=+-@"))]


async def test_the_csv_file_is_for_readers_of_everything(http: httpx.AsyncClient, spec: RunSpec) -> None:
    run = await create(http, spec)
    assert (await http.get(f"/v1/runs/{run}/metrics.csv")).text == "step,at\r\n"
    assert (await http.get(f"/v1/runs/{run}/metrics.csv", headers=bearer("client"))).status_code == 403
    assert (await http.get("/v1/runs/nope/metrics.csv")).status_code == 404


async def test_samples_of_one_prompt_over_the_steps(http: httpx.AsyncClient, spec: RunSpec, redis: Redis) -> None:
    run = await create(http, spec)
    worker = Worker(redis, run, (await claim(http))["attempt"])
    names = ("100%_a", "100%_A", '"quoted" \\ é', "1000_a")
    for step in range(1, 4):
        groups = [{**sample("alpha"), "prompt_id": name, "group_id": f"{step}{name}"} for name in names]
        await worker.report("samples", step, {"groups": groups})
    await eventually(http, f"/v1/runs/{run}/samples", lambda found: len(found["samples"]) == 3 * len(names))
    for name in names:
        reply = await http.get(f"/v1/runs/{run}/samples", params={"prompt": name})
        assert [(one["step"], one["prompt_id"]) for one in reply.json()["samples"]] == [(3, name), (2, name), (1, name)]
    none = await http.get(f"/v1/runs/{run}/samples", params={"prompt": "nobody's"})
    assert none.json()["samples"] == []


def test_passes_over_the_prompts_show_the_same_prompt() -> None:
    """Whatever the order of the prompts within a step, a group of the same prompt is among the samples."""
    kept = {}
    for step in range(1, 9):
        order = [f"q{(number * (2 * step - 1)) % 16}" for number in range(16)]
        taken = [cast(ScoredGroup, SimpleNamespace(record=_record(prompt), number=0)) for prompt in order]
        found = reporting.sample_groups(taken, [[0.0]] * 16, step, lambda number: {})
        assert found == reporting.sample_groups(taken, [[0.0]] * 16, step, lambda number: {}), "computed again"
        kept[step] = {group["prompt_id"] for group in found["groups"]}
    assert all(len(prompts) == 2 for prompts in kept.values())
    assert set.intersection(*kept.values())


def _record(prompt: str) -> Any:
    shown = SimpleNamespace(prompt_id=prompt, domain=None, messages=[])
    rollout = SimpleNamespace(prompt=shown, weights_version=1, responses=["a"])
    return SimpleNamespace(group_id="g", rollout=rollout, gate_version=1, fusion="weighted", rewards=[0.0], clients=[])
