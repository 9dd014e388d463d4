"""A standby worker holds a model ready, and run control shows workers that are gone."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
from mor_core.errors import Invalid
from mor_core.runs import ClaimRequest, RunState
from mor_trainer.config import WorkerSettings
from mor_trainer.control.worker_registry import WorkerRegistry
from mor_trainer.model.standby import StandbyModel
from mor_trainer.run.interruption import Interruption, RunInterrupted
from mor_trainer.run.worker import TrainingWorker


def test_a_model_that_is_held_ready_is_taken_once_and_loaded_again_where_it_changed(tiny: Path, tmp_path: Path) -> None:
    folder = str(shutil.copytree(tiny, tmp_path / "model"))
    standby = StandbyModel()
    standby.prepare(folder)
    held = standby._loaded
    assert standby.take(folder) is held
    assert standby.take(folder) is not held, "a run has changed it"
    standby.prepare(folder)
    held = standby._loaded
    (tmp_path / "model" / "model.safetensors").touch()
    assert standby.take(folder) is not held


def test_a_model_that_cannot_be_loaded_is_an_error_of_its_run_only(tmp_path: Path) -> None:
    standby = StandbyModel()
    standby.prepare(str(tmp_path))
    assert standby.checkpoint == str(tmp_path), "it is not tried again at every look"
    with pytest.raises(Invalid, match="cannot be loaded"):
        standby.take(str(tmp_path))


def test_work_that_is_worth_nothing_is_left_at_the_signal() -> None:
    """A model takes minutes to load, and a process has 30 s to end: the run is handed back at once."""
    worker = TrainingWorker(WorkerSettings(device="cpu"))
    interruption = Interruption(cast(Any, None), cast(Any, None), worker._ranks)
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    worker.install_signals()
    later = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    later.start()
    began = time.monotonic()
    try:
        with pytest.raises(RunInterrupted) as handed_back:
            interruption.abandon_at_end(lambda: time.sleep(60))
        assert handed_back.value.state is RunState.queued
        assert time.monotonic() - began < 30
        assert worker.ending
        with pytest.raises(RunInterrupted):  # the signal came before
            interruption.abandon_at_end(lambda: time.sleep(60))
        os.kill(os.getpid(), signal.SIGTERM)  # elsewhere it only says that the process is to end
    finally:
        later.join()
        for name, handler in before.items():
            signal.signal(name, handler)


def test_a_worker_that_is_silent_for_a_lease_is_gone_and_holds_no_run() -> None:
    workers = WorkerRegistry(lease_s=0.2)
    workers.claimed(ClaimRequest(worker="holder"), "r")
    workers.claimed(ClaimRequest(worker="idle"), None)
    assert [(each.name, each.state, each.run) for each in workers.list()] == [
        ("holder", "training", "r"),
        ("idle", "waiting", None),
    ]
    time.sleep(0.3)
    workers.claimed(ClaimRequest(worker="idle"), "r")
    assert [(each.name, each.state, each.run) for each in workers.list()] == [
        ("holder", "gone", None),
        ("idle", "training", "r"),
    ]
