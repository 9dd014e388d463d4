"""The history is the same in SQLite and in PostgreSQL."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mor_core.errors import Invalid
from mor_core.runs import Heartbeat, RunSpec, RunState
from mor_core.wire import EventRecord
from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.database import Database, HistoryUnavailable, NotOwner
from mor_trainer.control.database_address import Address
from mor_trainer.control.dead_letter_store import DeadLetterStore
from mor_trainer.control.history import History
from mor_trainer.control.history_copies import adopt, back_up, set_aside
from mor_trainer.control.history_schema import SCHEMAS
from mor_trainer.control.run_store import RunStore
from mor_trainer.event_log import event_id

from tests.postgresql import PostgreSQL
from tests.trainer.databases import database_url, open_database, postgresql  # noqa: F401

SPEC = RunSpec(name="r", model="/m", prompts="/p", steps=40)
THUMBNAIL = base64.b64encode(b"\xff\xd8\x00picture").decode()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:  # noqa: F811
    opened = open_database(database_url)
    yield opened
    opened.close()


class Stores:
    """The stores of run control, and events of a worker."""

    def __init__(self, database: Database) -> None:
        self.alerts = AlertStore(database, webhook=True)
        self.letters = DeadLetterStore(database, 2)
        self.runs = RunStore(database, self.alerts, self.letters, lease_s=0.01)
        self.history = History(database, self.runs, self.alerts, self.letters, samples_kept=2, events_kept=100)

    def report(self, run: str, attempt: int, number: int, kind: Any, step: int, data: dict[str, Any]) -> bool:
        record = EventRecord(
            run=run,
            group_id=event_id(attempt, number),
            stamps={"trainer": 1000.0 + number},
            kind=kind,
            step=step,
            data=data,
        )
        return self.history.add(record)


def sample(digest: str, text: str) -> dict[str, Any]:
    group = {
        "group_id": "g1",
        "prompt_id": "p1",
        "prompt": text,
        "images": [digest],
        "domain": "charts",
        "weights_version": 1,
        "gate_version": 1,
        "fusion": "mean",
        "responses": ["yes"],
        "rewards": [0.5],
        "advantages": [0.0],
        "clients": [],
    }
    return {"groups": [group], "thumbnails": {digest: THUMBNAIL}}


def life_of_a_run(database: Database) -> dict[str, Any]:
    """Lead a run through everything that the stores do, and return what they say, without times and names."""
    stores = Stores(database)
    runs, history = stores.runs, stores.history
    run = runs.create(SPEC, "key-1")
    assert runs.created("key-1", SPEC) == run
    assert runs.create(SPEC) != run
    claim = runs.claim("worker-1")
    assert claim is not None and claim.run == run, "the oldest run is claimed first"
    reported: list[tuple[Any, int, dict[str, Any]]] = [
        ("state", 0, {"name": "started", "from_step": 0}),
        *(("step", step, {"reward_mean": step / 8, "kl": 0.5, "gate_version": step}) for step in range(1, 6)),
        ("evaluation", 2, {"reward": 0.25}),
        *(("samples", step, sample(f"{step}" * 64, f"prompt\0{step} \u2028 😀")) for step in (1, 2, 3)),
        ("weights", 3, {"version": 3, "seconds": 1.0}),
        ("checkpoint", 3, {"path": "/c/3"}),
        ("alert", 4, {"name": "group_dropped", "reason": "tried\0often", "group_id": "g1", "letter": {"stage": "s"}}),
        ("replay", 4, {"letter": 1, "issued": True}),
    ]
    fresh = [stores.report(run, 1, number, *event) for number, event in enumerate(reported, 1)]
    again = stores.report(run, 1, 2, *reported[1])
    runs.beat(run, Heartbeat(attempt=1, state=RunState.paused, events_lost=30))
    replayed = stores.letters.list(run, 9)
    time.sleep(0.02)
    lost = runs.requeue_lost()
    second = runs.claim("worker-2")
    assert second is not None
    stores.report(run, 2, 1, "state", 3, {"name": "started", "from_step": 3, "checkpoint": "/c/3"})
    late = stores.report(run, 1, 40, "step", 5, {"reward_mean": 9.0})
    for number in range(4, 30):
        stores.report(run, 2, number, "step", number, {"reward_mean": number / 8})
    reply = runs.beat(run, Heartbeat(attempt=2, state=RunState.running))
    (alert, _) = stores.alerts.due() or (None, 0)
    assert alert is not None
    stores.alerts.mark_failed(alert.id, time.time() + 60)
    stores.alerts.acknowledge(alert.id, "a person", "seen")
    runs.beat(run, Heartbeat(attempt=2, state=RunState.finished, final="/final"))
    snapshot = runs.snapshot(run).model_dump(mode="json")
    found = {
        "new": (fresh, again, late),
        "lost": len(lost),
        "attempt": second.attempt,
        "replay": ([letter.replay for letter in replayed], reply.replay, reply.events_seen),
        "metrics": history.metrics(run, 0, 7).model_dump(mode="json"),
        "samples": [group.model_dump(mode="json") for group in history.samples.list(run, 9)],
        "pictures": [history.samples.thumbnail(run, digit * 64) for digit in "23"],
        "checkpoints": [(one.step, one.path) for one in history.checkpoints(run)],
        "events": [(event.id, event.kind, event.step, event.data) for event in history.events(run, 0)],
        "alerts": [(one.name, one.reason, one.count, one.webhook, one.acknowledged_by) for one in _alerts(stores)],
        "snapshot": {name: snapshot[name] for name in ("state", "step", "weights_version", "gate_version", "final")},
        "ended": list(runs.ended()) == [run],
        "forgotten": (history.forget_ended(time.time() + 1), len(history.events(run, 0)), history.pruned(run)),
        "left": (history.samples.list(run, 9), stores.letters.list(run, 9), len(_alerts(stores))),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str).replace(run, "RUN"))
    return plain


def _alerts(stores: Stores) -> list[Any]:
    return sorted(stores.alerts.list(None, acknowledged=None, limit=99), key=lambda one: one.id)


def test_a_run_has_the_same_history(database: Database, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = life_of_a_run(database)
    assert [point["step"] for point in found["metrics"]["points"]] == [4, 9, 14, 19, 24, 29]
    assert found["alerts"][0][1].replace("\ufffd", "\0") == "tried\0often"
    assert [group["step"] for group in found["samples"]] == [3, 2]
    assert found["lost"] == 1
    plain = Database.of_file(tmp_path_factory.mktemp("plain") / "history.sqlite3")
    expected = json.dumps(life_of_a_run(plain)).replace("\\u0000", "\\ufffd")
    assert json.loads(json.dumps(found).replace("\\u0000", "\\ufffd")) == json.loads(expected)
    plain.close()


def test_an_owner_that_lost_the_history_writes_nothing(database: Database, database_url: str) -> None:  # noqa: F811
    runs = Stores(database).runs
    run = runs.create(SPEC)
    second = open_database(database_url, "second")
    with pytest.raises(NotOwner, match="second has taken the history over"):
        runs.create(SPEC)
    with pytest.raises(NotOwner, match="send requests to it"):
        runs.snapshot(run)
    others = Stores(second).runs
    assert others.ids() == [run]
    assert second.epoch == 2
    database.release()
    owner = second.owner()
    assert owner is not None and owner.holder == "second", "what a former owner gives back is not the second's"
    second.close()


def test_a_transaction_is_over_before_another_takes_the_history_over(
    database: Database,
    database_url: str,  # noqa: F811
) -> None:
    """A write that passed the check of its epoch is stored before the takeover, and never after it."""
    runs = Stores(database).runs
    run = runs.create(SPEC)
    order: list[str] = []

    def take_over() -> None:
        second = open_database(database_url, "second")
        order.append("taken over")
        second.close()

    thread = threading.Thread(target=take_over)
    with database.transaction() as sql:
        thread.start()
        thread.join(timeout=0.5)
        assert thread.is_alive(), "it waits for the transaction"
        sql.run("UPDATE runs SET step=7 WHERE id=:id", id=run)
        order.append("written")
    thread.join(timeout=20)
    assert order == ["written", "taken over"]


def test_of_two_that_take_over_at_once_one_does(database_url: str) -> None:  # noqa: F811
    contenders = [Database(Address.parse(database_url)) for _ in range(4)]
    taken: list[bool] = []
    start = threading.Barrier(len(contenders))

    def contend(number: int) -> None:
        start.wait()
        while True:
            try:
                taken.append(contenders[number].take_over(str(number), 0, leased=True))
                return
            except HistoryUnavailable:  # the file is being created
                time.sleep(0.01)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(len(contenders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False, False, False, True]
    for database in contenders:
        database.close()


def test_a_server_that_restarts_is_used_again(postgresql: PostgreSQL) -> None:  # noqa: F811
    database = open_database(postgresql.new_database("restarted"))
    runs = Stores(database).runs
    run = runs.create(SPEC)
    postgresql.kill()
    try:
        for _ in range(2):  # the second finds no connection
            with pytest.raises(HistoryUnavailable, match="check the PostgreSQL server of MOR_DATABASE_URL"):
                runs.snapshot(run)
        assert "PostgreSQL" in (database.problem() or "")
    finally:
        postgresql.start()
    database.connect()
    assert runs.ids() == [run]
    assert database.problem() is None
    database.close()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("mysql://h/d", "begins with mysql://"),
        ("postgresql://h:5432", "names no database"),
        ("nothing", "cannot be read"),
        ("sqlite://", "names no plain file"),
        ("postgresql://user:secret@h:port/d", "cannot be read"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_what_is_wanted(url: str, problem: str) -> None:
    with pytest.raises(Invalid, match=problem) as refused:
        Address.parse(url)
    assert "wanted: postgresql://" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_new_database_begins_with_the_former_file(database_url: str, tmp_path: Path) -> None:  # noqa: F811
    """The file is of an earlier release, and a row of it has a type that PostgreSQL does not take."""
    former = tmp_path / "history.sqlite3"
    with contextlib.closing(sqlite3.connect(former)) as file:
        file.executescript(f"{SCHEMAS[0]} {SCHEMAS[1]} PRAGMA user_version=2;")
        run = "INSERT INTO runs (id, spec, state, desired, created_at, updated_at) VALUES (?, ?, ?, 'run', 1, 1)"
        for name in ("b", "a", "c"):
            file.execute(run, (name, SPEC.model_dump_json(), "queued"))
        file.execute("INSERT INTO metrics VALUES ('b', 3, 1, 1.0, '{\"kl\": 0.5}')")
        file.execute("INSERT INTO metrics VALUES ('c', 'junk', 1, 1.0, '{}')")
        file.execute("INSERT INTO thumbnails VALUES ('b', 'd', ?)", (b"\xff\x00",))
        event = "INSERT INTO events (run, attempt, kind, at, data) VALUES ('b', 0, 'state', 1.0, '{}')"
        for _ in range(1200):
            file.execute(event)
        file.commit()
    database = Database(Address.parse(database_url))
    assert database.take_over("first", 0, leased=True, begin=lambda sql: adopt(former, sql))
    stores = Stores(database)
    assert [claim.run for claim in (stores.runs.claim("w"), stores.runs.claim("w")) if claim] == ["b", "a"]
    assert [point.kl for point in stores.history.metrics("b", 0, 10).points][-1:] == [0.5]
    assert stores.history.samples.thumbnail("b", "d") == b"\xff\x00"
    assert stores.history.events("b", 0, 5000)[-1].id > 1200, "new events are numbered after the old ones"
    database.close()
    set_aside(former)
    assert not former.exists()
    assert (tmp_path / "history.sqlite3.adopted").exists()


def test_a_backup_is_consistent_while_the_history_is_written(tmp_path: Path) -> None:
    database = Database.of_file(tmp_path / "history.sqlite3")
    run = Stores(database).runs.create(SPEC)
    back_up(tmp_path / "history.sqlite3", tmp_path / "copy.sqlite3")
    Stores(database).runs.create(SPEC)
    database.close()
    copy = Database.of_file(tmp_path / "copy.sqlite3")
    assert Stores(copy).runs.ids() == [run]
    copy.close()
    with pytest.raises(Invalid, match="name a new file"):
        back_up(tmp_path / "history.sqlite3", tmp_path / "copy.sqlite3")
    with pytest.raises(Invalid, match="there is no history"):
        back_up(tmp_path / "none", tmp_path / "other")
