"""A worker that stands still past its lease and wakes up disturbs neither its successor nor its files."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.trainer.kit import Processes
from tests.trainer.stages import Stages, until
from tests.trainer.watching import alerts, applied_once, create, finish, points, snapshot


def files(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.timeout(600)
def test_a_worker_that_wakes_up_after_its_lease_disturbs_nothing(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=24, checkpoint_every=2, keep_weights=2)
    first = processes.work()
    with stages.halting_after(3):
        until(lambda: (snapshot(processes, run)["step"] or 0) >= 3, 240, "step 3")
        first.send_signal(signal.SIGSTOP)
    until(lambda: snapshot(processes, run)["state"] == "queued", 200, "the lease ended")
    with processes.working(), processes.client() as http:
        until(lambda: (snapshot(processes, run)["step"] or 0) >= 5, 240, "a step of the next attempt")
        http.post(f"/v1/runs/{run}/pause").raise_for_status()
        until(lambda: snapshot(processes, run)["state"] == "paused", 240, "the next attempt paused")
        before = files(processes.runs_dir / run)
        first.send_signal(signal.SIGCONT)
        until(lambda: "the lease of the run is lost" in processes.log("work"), 120, "the first worker gave up")
        assert files(processes.runs_dir / run) == before
        http.post(f"/v1/runs/{run}/resume").raise_for_status()
        finish(processes, run, 240)
    applied_once(points(processes, run))
    assert [alert["name"] for alert in alerts(processes, run)].count("queue_lost") == 0
    assert not list((processes.runs_dir / run).glob(".attempt-*"))
