"""Whatever stands in Redis, it harms only itself: junk in every key and stream that a router and run control use."""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mor_core.run_announcements import announce
from mor_core.runs import RunSpec
from mor_core.stored import UNREADABLE
from mor_core.streams import RECORD_TYPES, Streams
from mor_core.wire import EventRecord
from mor_router import store
from mor_trainer.app import create_app as create_control
from mor_trainer.config import ControlSettings
from mor_trainer.event_log import event_id
from redis.asyncio import Redis

from tests.router.conftest import TOKENS, Api, Start, eventually
from tests.router.endpoints import TOKEN, Endpoints
from tests.router.planted import jsonl, rows
from tests.router.test_audits import AUDITS, live
from tests.router.test_objectives import NDJSON, objective, specialists
from tests.router.test_reward_stage import rollout

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

SEED = 18
RUN = "fuzzed"
READ_BY_A_ROUTE = ("clients", "objectives", "gates:")
"""Hashes of the router's store of which a GET shows every entry."""
VALUES = (
    b"",
    b"\x00\xff\xfe",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"1e400",
    b'{"name": NaN, "version": Infinity}',
    b"[" * 50_000,
    b'{"a":' * 3000 + b"1" + b"}" * 3000,
    b"9" * 5000,
    b"x" * (1 << 20),
)
FIELDS = (b"\xff\x00", b"", b"../../x", b"a" * 5000, b"[1,2]")


def unreadable() -> float:
    return sum(sample.value for metric in UNREADABLE.collect() for sample in metric.samples if "total" in sample.name)


def mutations(original: bytes) -> Iterator[bytes]:
    """Junk in place of a value: fixed, and made from the value itself."""
    yield from VALUES
    yield original[: len(original) // 2]
    yield original[:-1]
    yield re.sub(rb"\d+(\.\d+)?", b"1e400", original, count=1)
    yield original * 2


async def added(redis: Redis, key: bytes, name: bytes, junk: bytes) -> None:
    await redis.xadd(key, {name: junk})


async def written(redis: Redis, key: bytes, draw: random.Random) -> bytes | None:
    """Put junk in one place of a key; return the junk, or ``None`` where the whole key was replaced by another type."""
    kind = (await redis.type(key)).decode()
    if draw.random() < 0.2:
        await redis.delete(key)
        if kind == "string":
            await redis.rpush(key, "x")  # type: ignore[misc]
        else:
            await redis.set(key, "x")
        return None
    command: Callable[[bytes], Any]
    if kind == "hash":
        field, original = draw.choice(sorted((await redis.hgetall(key)).items()))  # type: ignore[misc]
        place = draw.choice([field, field, draw.choice(FIELDS)])
        command = partial(redis.hset, key, place)
    elif kind == "list":
        original = (await redis.lrange(key, 0, 0))[0]  # type: ignore[misc]
        command = partial(redis.lset, key, 0)
    elif kind == "stream":
        [(_, fields)] = (await redis.xrange(key, count=1)) or [(b"", {b"record": b"{}"})]
        name, original = draw.choice([b"record", b"other", b"\xff"]), fields[b"record"]
        command = partial(added, redis, key, name)
    elif kind == "set":
        original = b"../../../../outside"
        command = partial(redis.sadd, key)
    else:
        original = await redis.get(key)
        command = partial(redis.set, key)
    junk = draw.choice(list(mutations(original)))
    await command(junk)
    return junk


def paths(app: FastAPI, **values: str) -> list[str]:
    """Return every GET route with its parameters filled in, except the endless stream of events."""
    found = []
    for path, methods in app.openapi()["paths"].items():
        if "get" in methods and not path.endswith("/events"):
            found.append(path.format_map(values))
    return found


class Cluster:
    """A router and run control in this process, with something in every key."""

    def __init__(self, api: Api, control: httpx.AsyncClient, get: dict[str, list[str]], run: str) -> None:
        self.api, self.control, self.get, self.run = api, control, get, run

    async def look(self) -> dict[str, httpx.Response]:
        """Read every route. None may fail, and readiness must say why it is not given."""
        await self.api.router.clients.pool.try_refresh()
        self.api.router.objectives.gate_resolver.invalidate()
        found = {}
        for path in self.get["router"]:
            found[path] = await self.api.call("GET", path)
        for path in self.get["control"]:
            found[path] = await self.control.get(path)
        for path, reply in found.items():
            if path == "/readyz" and reply.status_code == 503:
                assert re.search("cannot be read|has the lease", reply.text), reply.text
                continue
            assert reply.status_code in (200, 404, 409, 422), (path, reply.status_code, reply.text[:500])
            assert "NaN" not in reply.text or "html" in reply.headers.get("content-type", ""), path
            assert "Infinity" not in reply.text, path
            if reply.status_code == 409:
                assert re.search(
                    r"DELETE|fit again|PUT|PATCH|restore|create the run again|mor (run stop|objective)", reply.text
                ), reply.text
        return found


@pytest.fixture
async def cluster(
    start: Start, endpoints: Endpoints, redis: Redis, redis_url: str, tmp_path: Path, settings: Any
) -> AsyncIterator[Cluster]:
    control = create_control(
        ControlSettings(redis_url=redis_url, runs_dir=tmp_path / "runs", tokens_file=settings.tokens_file)  # type: ignore[arg-type]
    )
    async with (
        start(worker=True, anchor_share=0.5, audit_share=1.0, audit_second_share=1.0, candidate_share=1.0) as api,
        control.router.lifespan_context(control),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(control),
            base_url="http://c",
            headers={"Authorization": f"Bearer {TOKENS['admin']}"},
        ) as http,
    ):
        await specialists(api, endpoints)
        plain = endpoints.endpoint("helpful")  # also the name of the objective, for the routes of both
        await api.enrol(plain)
        await objective(api)
        await api.ok("POST", "/v1/objectives/helpful/fit")
        judge = {"kind": "judge", "url": plain.url, "model": "m", "token": TOKEN}
        await api.ok("PUT", "/v1/objectives/helpful/labeller", judge)
        for _ in range(12):
            await api.reward("answer 1", "answer 2", objective="helpful")
        await api.reward("answer 1", "answer 2")
        await api.router.trust.honeypots.settled()
        await audited(api)
        await proposed(api)
        spec = RunSpec(name=RUN, model="/m", prompts="/p", steps=10)
        run = control.state.runs.create(spec)
        control.state.runs.claim("w")
        side = Streams(redis, run, 1000)
        await announce(redis, run, "/m")
        await side.publish("rollouts", rollout(run, "first", ("answer 1", "answer 2")), timeout_s=5)
        for number, step in enumerate(({"reward_mean": 0.5, "step_seconds": 1.0}, {"kl": 0.1}), 1):
            await side.publish("events", event(run, number, "step", number, step), timeout_s=5)

        async def settled() -> bool:
            seen = (await http.get(f"/v1/runs/{run}")).json()["step"] == 2
            return seen and await side.depth("rewards") == 1

        await eventually(settled)
        names = {"name": "helpful", "objective": "helpful", "version": "1", "client": "helpful", "run": run}
        names |= {"sha256": "0" * 64, "file": "x", "digest": "0" * 64, "letter": "1", "alert": "1", "id": "1"}
        app: Any = api.http._transport
        yield Cluster(api, http, {"router": paths(app.app, **names), "control": paths(control, **names)}, run)


async def audited(api: Api) -> None:
    """Have labelled audits, one that waits for a second opinion, one that waits, and an offer of one to a person."""
    await api.ok("PATCH", "/v1/objectives/helpful", {"audited_by": "people"})
    await live(api, 3)
    for person in ("admin", "labeller"):
        offered = await api.ok("GET", f"{AUDITS}/next", token=TOKENS[person])
        await api.ok("POST", f"{AUDITS}/{offered['audit']}", {"preferred": "first"}, token=TOKENS[person])
    await api.ok("GET", f"{AUDITS}/next")


async def proposed(api: Api) -> None:
    """Have live groups and uploaded pairs as candidates, of which no draw takes all, and a proposed pair that waits."""
    await api.ok("PATCH", "/v1/objectives/helpful", {"audit_share": 0})
    await live(api, 4, first=100)
    path = "/v1/objectives/helpful/candidates"
    counts = (await api.http.put(path, content=jsonl(rows(24, start=700)), headers=NDJSON)).raise_for_status().json()
    assert counts["kept"] > 1, counts
    await api.ok("POST", "/v1/objectives/helpful/proposals", {"count": 1})
    await api.ok("PATCH", "/v1/objectives/helpful", {"audit_share": None})


def event(run: str, number: int, kind: Any, step: int, data: dict[str, Any]) -> EventRecord:
    return EventRecord(run=run, group_id=event_id(1, number), stamps={"trainer": 1.0}, kind=kind, step=step, data=data)


@pytest.mark.parametrize("rounds", [40, pytest.param(1500, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
async def test_junk_anywhere_stops_nothing(cluster: Cluster, redis: Redis, rounds: int) -> None:
    """All other entries are served, groups are rewarded, and what does not fit is counted."""
    draw = random.Random(SEED)
    side = Streams(redis, cluster.run, 1000)
    keys = sorted([key async for key in redis.scan_iter("mor:*")])
    kinds = {key.decode().removeprefix(store.key("")).split(":")[0] for key in keys if b"{router}" in key}
    stored = {
        "clients",
        "objectives",
        "anchors",
        "labellers",
        "versions",
        *store.KINDS,
        "influence",
        "recent",
        "auditor",
        "given",
    }
    assert kinds >= stored, "something is in every key"
    order = [keys[draw.randrange(len(keys))] for _ in range(rounds)]
    order[: len(keys)] = draw.sample(keys, min(len(keys), rounds))
    for number, key in enumerate(order):
        await announce(redis, cluster.run, "/m")
        dump, left_ms = await redis.dump(key), await redis.pttl(key)
        if dump is None:
            continue  # a lock that ended, or a stream that was settled and deleted
        before = unreadable()
        junk = await written(redis, key, draw)
        found = await cluster.look()
        name = key.decode().removeprefix(store.key(""))
        if junk is not None:
            assert len(found["/v1/clients"].json()) >= 3, f"one bad record of {name} hides others"
        item = await cluster.api.reward("answer 1", "answer 2")
        assert item["status"] == "ok", (number, name, item)
        if junk in VALUES and name.startswith(READ_BY_A_ROUTE):
            assert unreadable() > before, f"{junk[:40]!r} in {name} is not counted"
        if number % 10 == 0:
            group = f"good-{number}"
            await side.publish("rollouts", rollout(cluster.run, group, ("answer 1", "answer 2")), timeout_s=5)

            async def rewarded(group: str = group) -> bool:
                entries: Any = await redis.xrange(side.key("rewards")) if await side.depth("rewards") else []
                return any(group.encode() in fields.get(b"record", b"") for _, fields in entries)

            if not key.endswith((b":rewards", b"mor:runs")):
                await eventually(rewarded, within_s=20)
        await redis.delete(key)
        await redis.restore(key, max(0, left_ms), dump, replace=True)
    final = await cluster.look()
    assert final["/readyz"].status_code == 200
    assert len(final["/v1/clients"].json()) == 4


MALFORMED: list[tuple[str, dict[str, Any]]] = [
    ("state", {"from_step": "x"}),
    ("state", {"from_step": -1}),
    ("samples", {}),
    ("samples", {"groups": [{}]}),
    ("samples", {"groups": "x"}),
    ("samples", {"groups": [], "thumbnails": {"x": "y"}}),
    ("samples", {"groups": [], "thumbnails": {"0" * 64: "!"}}),
    ("evaluation", {}),
    ("evaluation", {"reward": "much"}),
    ("weights", {}),
    ("weights", {"version": "x", "seconds": 1}),
    ("weights", {"version": 1, "seconds": -1}),
    ("checkpoint", {}),
    ("alert", {}),
    ("alert", {"name": "no_such_alert", "reason": "r"}),
    ("alert", {"name": "group_dropped", "reason": "r"}),
    ("alert", {"name": "group_dropped", "reason": "r", "group_id": 1, "letter": []}),
    ("replay", {}),
    ("replay", {"issued": True, "letter": "x"}),
    ("step", {"gate_version": "x"}),
    ("step", {"gate_version": 10**30}),
]


async def test_no_event_stops_the_history(cluster: Cluster, redis: Redis) -> None:
    """A malformed event becomes an alert and a dead letter under its own number, and later events are read."""
    side = Streams(redis, cluster.run, 1000)
    for number, (kind, data) in enumerate(MALFORMED, 3):
        await side.publish("events", event(cluster.run, number, kind, 3, data), timeout_s=5)
    odd = event(cluster.run, 90, "step", 3, {})
    forged = [
        odd.model_copy(update={"group_id": "junk"}),
        odd.model_copy(update={"group_id": event_id(9, 1), "data": {"from_step": 0}, "kind": "state"}),
        odd.model_copy(update={"step": 10**12}),
        odd.model_copy(update={"stamps": {}, "group_id": event_id(1, 91)}),
    ]
    for record in forged:
        await redis.xadd(side.key("events"), {"record": record.model_dump_json()})
    for text in ('{"kl": 1e400}', '{"kl": NaN}', '{"a": ' * 500 + "1" + "}" * 500):
        content = odd.model_dump_json().replace('"data":{}', f'"data":{text}')
        await redis.xadd(side.key("events"), {"record": content})
    last = 3 + len(MALFORMED)
    await side.publish("events", event(cluster.run, last, "step", 7, {"kl": 0.5}), timeout_s=5)

    async def read() -> bool:
        return (await cluster.control.get(f"/v1/runs/{cluster.run}")).json()["step"] == 7

    await eventually(read, within_s=20)
    await cluster.look()
    listed = (await cluster.control.get("/v1/alerts")).json()
    (alert,) = [line for line in listed if line["name"] == "unreadable_record"]
    assert alert["count"] >= len(MALFORMED) + len(forged)
    letters = (await cluster.control.get(f"/v1/runs/{cluster.run}/dead")).json()
    assert len(letters) >= len(MALFORMED)
    assert {letter["group_id"] for letter in letters} == {"unreadable"}


async def test_rows_of_an_earlier_version_that_do_not_fit_are_left_out(cluster: Cluster, tmp_path: Path) -> None:
    """A run with such a specification is told apart; all others are listed, claimed and shown."""
    import sqlite3

    spec = RunSpec(name="old", model="/m", prompts="/p").model_dump(mode="json")
    broken = json.dumps(spec).replace('"lr": 1e-05', '"lr": Infinity')
    assert "Infinity" in broken
    with sqlite3.connect(tmp_path / "runs" / "history.sqlite3") as database:
        known = database.execute("SELECT count(*) FROM runs").fetchone()[0]
        row = "INSERT INTO runs (id, spec, state, desired, created_at, updated_at) VALUES (?, ?, ?, 'run', 1, 1)"
        database.execute(row, ("old-1", broken, "queued"))
        database.execute(row, ("old-2", "{", "finished"))
        database.execute("INSERT INTO metrics VALUES (?, 3, 1, 1.0, ?)", (cluster.run, '{"kl": Infinity}'))
        database.execute("INSERT INTO evaluations VALUES (?, 3, 1, 1.0, ?)", (cluster.run, "["))
        database.execute("INSERT INTO samples (run, step, attempt, data) VALUES (?, 3, 1, 'NaN')", (cluster.run,))
        database.execute(
            "INSERT INTO events (run, attempt, kind, step, at, data) VALUES (?, 0, 'checkpoint', 3, 1.0, ?)",
            (cluster.run, '{"path": NaN}'),
        )
    assert known == 1
    state = cluster.control._transport.app.state  # type: ignore[attr-defined]
    runs, history = state.runs, state.history
    runs.load()
    assert [run.id for run in runs.readable(runs.ids())] == [cluster.run]
    assert runs.claim("w") is None, "the broken run is failed, and another one would be claimed"
    assert runs.claim("w") is None
    whole = history.metrics(cluster.run, 0, 100)
    assert [point.step for point in whole.points] == [1, 2]
    assert whole.evaluations == ()
    assert history.samples.list(cluster.run, 10) == []
    assert history.checkpoints(cluster.run) == []
    assert history.events(cluster.run, 0)[-1].data == {}
    await cluster.look()


def test_every_kind_of_record_is_fuzzed() -> None:
    assert set(RECORD_TYPES) == {"prompts", "rollouts", "rewards", "events", "dead"}
