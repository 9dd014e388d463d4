"""Experiment trackers, read back with their own libraries: the figures of a run, and trackers that fail or hang."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_core.errors import Invalid
from mor_core.runs import RunSpec, RunState
from mor_core.wire import EventRecord
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.trackers import Trackers, configured
from mor_trainer.trackers.figures import figures
from redis.asyncio import Redis

from tests.trainer.control import Worker, claim, create, eventually
from tests.trainer.kit import bearer, running

pytestmark = pytest.mark.anyio

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


async def report(http: httpx.AsyncClient, run: str, attempt: int, state: str) -> None:
    beat = {"attempt": attempt, "state": state}
    reply = await http.post(f"/v1/runs/{run}/heartbeat", json=beat, headers=bearer("service"))
    assert reply.status_code == 200, reply.text


async def train(http: httpx.AsyncClient, spec: RunSpec, redis: Redis) -> str:
    """A run that loses its third step, resumes after the second, and finishes with other rewards."""
    run = await create(http, spec)
    for first, rewards in ((1, (1.0, 2.0, 3.0)), (3, (30.0, 40.0))):
        attempt = (await claim(http))["attempt"]
        worker = Worker(redis, run, attempt)
        await worker.report("state", first - 1, {"name": "resumed", "from_step": first - 1})
        for step, reward in enumerate(rewards, first):
            await worker.step(step, reward)
        last = first + len(rewards) - 1
        await worker.report("evaluation", last, {"step": last, "reward": rewards[-1] / 10, "domains": {}, "version": 1})
        await eventually(http, f"/v1/runs/{run}/metrics", partial(_ends_with, rewards[-1]))
        await report(http, run, attempt, "finished" if last == 4 else "queued")
    return run


def _ends_with(reward: float, history: dict[str, Any]) -> bool:
    return bool(history["points"] and history["points"][-1]["reward_mean"] == reward)


def values(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return [(point.step, point.value) for point in read.Scalars(tag)]


async def test_tensorboard_and_mlflow_hold_the_run(
    settings: ControlSettings, spec: RunSpec, redis: Redis, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    changes = {"tensorboard_dir": tmp_path / "boards", "mlflow_tracking_uri": store, "mlflow_experiment": "here"}
    async with running(create_app(settings.model_copy(update=changes))) as http:
        http.headers.update(bearer("admin"))
        run = await train(http, spec, redis)
        mlflow = MlflowClient(store)
        deadline = time.monotonic() + 60
        while not (found := _finished(mlflow)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert (await http.get("/v1/alerts")).json() == []
    board = tmp_path / "boards" / run
    assert values(board, "train/reward_mean") == [(1, 1), (2, 2), (3, 30), (4, 40)], "the lost step is gone"
    assert values(board, "clients/alpha/weight") == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert values(board, "evaluation/reward") == [(4, 4)]
    assert found.info.run_name == run
    assert found.data.params["optimiser.lr"] == str(spec.optimiser.lr)
    assert found.data.tags["mor.lost_after_step"] == "2"
    history = mlflow.get_metric_history(found.info.run_id, "train/reward_mean")
    assert [(point.step, point.value) for point in history] == [(1, 1), (2, 2), (3, 3), (3, 30), (4, 40)]
    assert found.data.metrics["evaluation/reward"] == 4


def _finished(mlflow: Any) -> Any:
    experiment = mlflow.get_experiment_by_name("here")
    found = mlflow.search_runs([experiment.experiment_id]) if experiment else []
    return found[0] if found and found[0].info.status == "FINISHED" else None


async def test_a_run_continues_when_its_trackers_fail(
    settings: ControlSettings, spec: RunSpec, redis: Redis, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    changes = {"tensorboard_dir": tmp_path / "file", "mlflow_tracking_uri": NOWHERE}
    async with running(create_app(settings.model_copy(update=changes))) as http:
        http.headers.update(bearer("admin"))
        run = await train(http, spec, redis)
        assert (await http.get(f"/v1/runs/{run}")).json()["state"] == "finished"
        assert len((await http.get(f"/v1/runs/{run}/metrics")).json()["points"]) == 4
        both = await eventually(http, "/v1/alerts", lambda found: found and found[0]["count"] == 2)
        [alert] = both
        assert (alert["name"], alert["run"]) == ("tracker_failed", run)
        assert "the run continues" in alert["reason"]
        lost = (await http.get("/metrics")).text
        assert 'mor_trainer_tracker_lost_total{tracker="mlflow"}' in lost


async def test_wandb_holds_the_run(
    settings: ControlSettings, spec: RunSpec, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its offline files, which 'wandb sync' sends: own steps, with those that were lost and what replaced them."""
    import wandb  # noqa: F401  (here, so that the tracker's thread and this one do not import its parts at a time)

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    async with running(create_app(settings.model_copy(update={"trackers": ("wandb",)}))) as http:
        http.headers.update(bearer("admin"))
        run = await train(http, spec, redis)
        deadline = time.monotonic() + 60
        while not any(record.WhichOneof("record_type") == "exit" for record in wandb_records(tmp_path)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        assert (await http.get("/v1/alerts")).json() == []
    records = wandb_records(tmp_path)
    [begun] = {(one.run.run_id, one.run.project) for one in records if one.WhichOneof("record_type") == "run"}
    assert begun == (run, "mor")
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in one.history.item}
        for one in records
        if one.WhichOneof("record_type") == "history"
    ]
    rewards = [(row["step"], row["train/reward_mean"]) for row in rows if "train/reward_mean" in row]
    assert rewards == [(1, 1), (2, 2), (3, 3), (3, 30), (4, 40)]
    assert [(row["step"], row["evaluation/reward"]) for row in rows if "evaluation/reward" in row][-1] == (4, 4)
    stepped = {one.metric.step_metric for one in records if one.WhichOneof("record_type") == "metric"}
    assert "step" in stepped


def wandb_records(folder: Path) -> list[Any]:
    """Read W&B's offline files: records in LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, place, part = file.read_bytes(), 7, b""
        while place + 7 <= len(content):
            length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            part += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                found.append(Record.FromString(part))
                part = b""
    return found


@pytest.mark.parametrize(
    ("name", "cure"), [("wandbb", "the installed ones are .*wandb"), ("mlflow", "set MOR_MLFLOW_TRACKING_URI")]
)
def test_an_unknown_tracker_is_refused_with_those_that_there_are(
    settings: ControlSettings, name: str, cure: str
) -> None:
    with pytest.raises(Invalid, match=cure):
        configured(settings.model_copy(update={"trackers": (name,)}))


class Hanging:
    name = "hanging"

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.logged: list[int] = []

    def begin(self, run: str, spec: RunSpec) -> None:
        self.go_on.wait(30)

    def log(self, run: str, step: int, at: float, figures: Mapping[str, float]) -> None:
        self.logged.append(step)

    def rewind(self, run: str, step: int) -> None: ...

    def end(self, run: str, state: RunState) -> None: ...


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    tracker = Hanging()
    yield tracker
    tracker.go_on.set()


def step(number: int, **data: Any) -> EventRecord:
    return EventRecord(run="r", group_id=f"{number}", stamps={"trainer": 1.0}, kind="step", step=number, data=data)


def test_a_tracker_that_hangs_delays_nobody_and_its_queue_is_bounded(spec: RunSpec, hanging: Hanging) -> None:
    warned: list[tuple[str, str]] = []
    trackers = Trackers([hanging], lambda *warning: warned.append(warning), queue=3)
    begun = time.monotonic()
    for number in range(1, 21):
        trackers.add_event(step(number), spec)
    trackers.close(0.2)
    assert time.monotonic() - begun < 2
    [(run, reason)] = warned
    assert run == "r" and "3 figures wait" in reason
    hanging.go_on.set()
    trackers.close(10)
    assert hanging.logged[-3:] == [18, 19, 20] and len(hanging.logged) <= 4


def test_figures_are_the_known_numbers_by_name() -> None:
    data = {
        "kl": 0.5, "entropy": None, "applied": ["a"], "begun_at": 1.0, "clients": {"a": {"weight": 1, "failures": {}}},
        "domains": {"x:y": {"reward_mean": None, "groups": 2}}, "seconds": {"waiting": 0.25},
    }  # fmt: skip
    assert figures(step(1, **data)) == {
        "train/kl": 0.5, "clients/a/weight": 1, "domains/x_y/groups": 2, "seconds/waiting": 0.25,
    }  # fmt: skip


@pytest.mark.parametrize("setting", [{"tensorboard_dir": Path("x")}, {"mlflow_tracking_uri": NOWHERE}])
def test_a_missing_library_is_named_with_the_cure(
    settings: ControlSettings, setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Invalid, match="install mor-trainer"):
        configured(settings.model_copy(update=setting))
