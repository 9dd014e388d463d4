"""Trackio's own files have the runs that a tracker sent there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.kit import make_spec

pytest.importorskip("trackio", reason="trackio is not installed (pip install 'mor-trainer[trackio]')")

_READ = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
print("FOUND", json.dumps({run: SQLiteStorage.get_logs("mor", run) for run in sys.argv[1:]}))
"""
_SEND = """
import sys
from mor_core.runs import RunSpec
from mor_core.wire import EventRecord
from mor_core.runs import RunState
from mor_trainer.trackers import Trackers
from mor_trainer.trackers.trackio import Trackio

spec, warned = RunSpec.model_validate_json(sys.argv[1]), []
trackers = Trackers([Trackio()], lambda *warning: warned.append(warning), 1000)

def send(run, kind, step, **data):
    number = str(send.number)
    send.number += 1
    event = EventRecord(run=run, group_id=number, stamps={"trainer": 1.0}, kind=kind, step=step, data=data)
    trackers.add_event(event, spec)

send.number = 0
for run in ("one", "two"):
    send(run, "state", 0, from_step=0)
for step in (1, 2, 3):
    for run in ("one", "two"):
        send(run, "step", step, reward_mean=float(step))
send("one", "state", 2, from_step=2)
send("one", "step", 3, reward_mean=30.0)
send("one", "evaluation", 3, reward=0.5)
for run in ("one", "two"):
    trackers.add_end(run, spec, RunState.finished)
trackers.close(120)
assert not warned, warned
"""


def run_script(script: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_runs_at_a_time_keep_their_figures_and_what_was_lost(tmp_path: Path) -> None:
    """In processes of their own, because the library reads its folder once."""
    run_script(_SEND, tmp_path, make_spec(tmp_path, tmp_path / "prompts.jsonl").model_dump_json())
    said = run_script(_READ, tmp_path, "one", "two")
    found: dict[str, list[dict[str, Any]]] = json.loads(
        next(line for line in said.splitlines() if line.startswith("FOUND")).removeprefix("FOUND ")
    )
    rewards = {
        run: sorted((row["step"], row["train/reward_mean"]) for row in rows if "train/reward_mean" in row)
        for run, rows in found.items()
    }
    assert rewards == {"one": [(1, 1), (2, 2), (3, 3), (3, 30)], "two": [(1, 1), (2, 2), (3, 3)]}
    assert [(row["step"], row["mor.lost_after_step"]) for row in found["one"] if "mor.lost_after_step" in row] == [
        (2, 2)
    ]
    assert [row["evaluation/reward"] for row in found["one"] if "evaluation/reward" in row] == [0.5]
