"""The whole loop with two ranks under torchrun: run control, pause and stop, a rank that dies, memory that runs out."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.trainer.kit import Processes
from tests.trainer.stages import Stages, until
from tests.trainer.watching import alerts, applied_once, create, finish, points, snapshot

pytestmark = pytest.mark.timeout(400)


def rank(number: int, launcher: int) -> int:
    """Return the process id of a rank that torchrun started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    wanted = f"RANK={number}".encode()
    return next(int(pid) for pid in children if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


def test_two_ranks_share_a_run_and_a_killed_one_is_started_again(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    launcher = processes.work_together()
    run = create(processes, model=tiny, prompts=prompts, steps=12)
    with processes.client() as http:
        with stages.halting_after(1):
            until(lambda: (snapshot(processes, run)["step"] or 0) >= 1, 90, "step 1")
            http.post(f"/v1/runs/{run}/pause")
            until(lambda: snapshot(processes, run)["state"] == "paused", 30, "paused")
        paused_at = snapshot(processes, run)["step"]
        with stages.halting_after(paused_at + 1):
            http.post(f"/v1/runs/{run}/resume")
            until(lambda: snapshot(processes, run)["step"] > paused_at, 30, "going on")
            os.kill(rank(1, launcher.pid), signal.SIGKILL)
        until(lambda: snapshot(processes, run)["state"] == "queued", 30, "handed back")
        end = finish(processes, run, 120)
    history = points(processes, run)
    applied_once(history)
    assert all(point["sampled_by"] == sorted(point["sampled_by"]) for point in history)
    assert history[0]["importance_ratio_max"] == pytest.approx(1, abs=1e-4), "the engine has what the ranks gathered"
    assert history[-1]["importance_ratio_max"] == pytest.approx(1, abs=1e-3)
    assert (Path(end["final"]) / "model.safetensors").is_file()
    stages.sampler.version = -1  # it knows one run only
    following = create(processes, model=tiny, prompts=prompts, steps=400, checkpoint_every=100)
    until(lambda: (snapshot(processes, following)["step"] or 0) >= 1, 200, "a step of the next run")
    os.kill(rank(1, launcher.pid), signal.SIGTERM)
    until(lambda: snapshot(processes, following)["state"] == "queued", 30, "a rank was asked to end, and all did")
    assert launcher.wait(timeout=40) == 0
    step = snapshot(processes, following)["step"]
    assert (processes.runs_dir / following / "checkpoints" / f"step-{step:08d}").is_dir()


@pytest.mark.slow
def test_a_frozen_rank_has_all_started_again(processes: Processes, stages: Stages, tiny: Path, prompts: Path) -> None:
    processes.serve()
    processes.environment["MOR_RANK_TIMEOUT_S"] = "8"
    launcher = processes.work_together()
    run = create(processes, model=tiny, prompts=prompts, steps=12, checkpoint_every=1)
    with stages.halting_after(1):
        until(lambda: (snapshot(processes, run)["step"] or 0) >= 1, 120, "step 1")
        os.kill(rank(1, launcher.pid), signal.SIGSTOP)
    finish(processes, run, 240)
    applied_once(points(processes, run))
    assert "ranks are silent" in processes.log("work")


def test_memory_that_runs_out_on_one_rank_halves_the_micro_batches_of_all(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    processes.work_together(sys.executable, str(Path(__file__).with_name("short_of_memory.py")), "100")
    run = create(processes, model=tiny, prompts=prompts, steps=3, group_size=6, micro_batch_tokens=160)
    finish(processes, run, 150)
    applied_once(points(processes, run))
    remembered = json.loads((processes.runs_dir / run / "memory.json").read_text())["micro_batch_tokens"]
    assert remembered <= 100
    (alert,) = [found for found in alerts(processes, run) if found["name"] == "out_of_memory"]
    assert f"hold at most {remembered} tokens" in alert["reason"]
