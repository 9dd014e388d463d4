"""Deterministic runs: killed at any point, they end with the weights of an undisturbed run, bit for bit."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from mor_core.errors import Invalid
from mor_trainer.groups.ledger import Ledger
from mor_trainer.groups.replay_log import ReplayConditions, ReplayLog
from mor_trainer.model.micro_batches import MicroBatchItem
from mor_trainer.update.budget import OutOfMemory, TokenBudget

from tests.trainer.kit import Processes, make_spec
from tests.trainer.records import order_of
from tests.trainer.stages import Stages, until
from tests.trainer.watching import applied_once, create, finish, points, snapshot

STEPS = 8


def kill_when(process: subprocess.Popen[bytes], condition: Callable[[], bool], what: str) -> None:
    """Kill a process at the moment at which the condition holds, as a crash would."""
    deadline, holds = time.monotonic() + 90, False
    while not holds:
        assert process.poll() is None, "the process ended by itself"
        assert time.monotonic() < deadline, what
        time.sleep(0.0005)
        with suppress(FileNotFoundError):  # a folder went while it was looked at
            holds = condition()
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)


@pytest.mark.timeout(400)
def test_a_run_killed_anywhere_ends_with_the_weights_of_an_undisturbed_run(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    dice = itertools.count()
    stages.sampler.seed_of = lambda *_: next(dice)  # a group that is sampled again has other responses
    stages.beta = "shadow"
    fields: dict[str, Any] = {"deterministic": True, "steps": STEPS, "checkpoint_every": 3}
    run = create(processes, model=tiny, prompts=prompts, **fields)
    folder = processes.runs_dir / run
    recorded = folder / "record" / "step-00000002.json"
    kill_when(processes.work(), recorded.exists, "in the middle of step 2")
    checkpoints = folder / "checkpoints"
    kill_when(
        processes.work(),
        lambda: any(folder.glob(".attempt-*/.step-00000003.*.part")),
        "while the checkpoint of step 3 is written",
    )
    assert not (checkpoints / "step-00000003").exists()
    published = len(list((folder / "weights").glob("[0-9]*")))
    assert published
    later = folder / "record" / "step-00000005.json"

    def after_publication() -> bool:
        newest = max((path for path in (folder / "weights").glob("[0-9]*")), key=lambda path: int(path.name))
        return later.exists() and newest.stat().st_mtime > later.stat().st_mtime

    kill_when(processes.work(), after_publication, "after step 5 was published")
    worker = processes.work("--once")
    disturbed = finish(processes, run, 120)
    assert worker.wait(timeout=20) == 0
    applied_once(points(processes, run))

    again = create(processes, model=tiny, prompts=prompts, **fields)
    shutil.copytree(folder / "record", processes.runs_dir / again / "record")
    sampled = stages.sampled.total()
    worker = processes.work("--once")
    undisturbed = finish(processes, again, 120)
    assert worker.wait(timeout=20) == 0
    assert stages.sampled.total() == sampled, "computed from the replay log alone"
    one, other = (Path(end["final"]) / "model.safetensors" for end in (disturbed, undisturbed))
    assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes() != (tiny / "model.safetensors").read_bytes()


def stored_alerts(processes: Processes, run: str) -> list[dict[str, Any]]:
    with processes.client() as http:
        return list(http.get("/v1/alerts", params={"run": run}).raise_for_status().json())


def test_a_run_waits_for_a_client_that_is_away(processes: Processes, stages: Stages, tiny: Path, prompts: Path) -> None:
    """Its groups are sampled again after growing pauses, which costs no attempt; the alert ends by itself."""
    processes.serve()
    processes.environment["MOR_GROUP_ATTEMPTS"] = "1"
    run = create(processes, model=tiny, prompts=prompts, steps=2, deterministic=True)  # beta never answers
    with processes.working():
        until(lambda: bool(stored_alerts(processes, run)), 200, "the alert was raised")
        [alert] = stored_alerts(processes, run)
        assert alert["name"] == "waiting_for_clients"
        assert alert["reason"] == "groups wait for beta (timeout, no answer within 2 s)"
        assert snapshot(processes, run)["step"] is None
        assert not list((processes.runs_dir / run / "record").glob("step-*"))
        stages.beta = "shadow"
        finish(processes, run)
        [over] = stored_alerts(processes, run)
        assert (over["id"], over["acknowledged_by"]) == (alert["id"], "mor")
    assert points(processes, run)[-1]["groups_dropped"] == 0


def test_a_run_whose_clients_do_not_return_fails_and_names_them(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    processes.environment["MOR_STALL_TIMEOUT_S"] = "3"
    run = create(processes, model=tiny, prompts=prompts, deterministic=True)  # beta never answers
    with processes.working(), processes.client() as http:
        until(lambda: stages.sampled.total() > 0, 200, "a group was sampled")
        http.post(f"/v1/runs/{run}/pause").raise_for_status()
        time.sleep(4)  # a pause is no stall
        http.post(f"/v1/runs/{run}/resume").raise_for_status()
        until(lambda: snapshot(processes, run)["state"] == "failed", 200, "failed")
    error = snapshot(processes, run)["error"]
    assert re.match("no scored group came back for [345] s", error)
    assert "(MOR_STALL_TIMEOUT_S); groups wait for beta (timeout, no answer within 2 s); entries" in error
    open_alerts = [alert for alert in stored_alerts(processes, run) if alert["acknowledged_at"] is None]
    assert [alert["name"] for alert in open_alerts] == ["run_failed"]


def test_a_deterministic_run_refuses_staleness_other_conditions_and_a_broken_log(
    tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"max_staleness=1 lets timing decide .* set max_staleness=0"):
        make_spec(tiny, prompts, deterministic=True, max_staleness=1)
    replay_log = ReplayLog(tmp_path)
    begun = ReplayConditions(ranks=1, torch_threads=1, device="cpu", precision="auto")
    replay_log.pin_conditions(begun)
    replay_log.pin_conditions(begun)
    with pytest.raises(Invalid, match=r"began with ranks=1 \(now 2\), .* start the worker as it was"):
        ReplayLog(tmp_path).pin_conditions(begun.model_copy(update={"ranks": 2}))
    (tmp_path / "record" / "step-00000003.json").write_text(json.dumps({}))
    with pytest.raises(Invalid, match=r"step-00000002.json is missing and later steps are recorded"):
        replay_log.read(2)
    with pytest.raises(Invalid, match="restore it from a backup"):
        replay_log.read(3)
    conditions = tmp_path / "record" / "conditions.json"
    conditions.write_text(conditions.read_text().replace('"torch_threads": 1', '"torch_threads": 3'))
    with pytest.raises(Invalid, match=r"conditions.json: its SHA-256 is .* restore it from a backup"):
        replay_log.pin_conditions(begun)


def test_a_flipped_digit_in_a_recorded_step_is_found(tmp_path: Path) -> None:
    ledger = Ledger[None]("r", order_of(12), 0, 3).state()
    replay_log = ReplayLog(tmp_path)
    replay_log.write(1, [], [], ledger)
    assert replay_log.read(1) is not None
    record = tmp_path / "record" / "step-00000001.json"
    whole = record.read_text()
    record.write_text(whole.replace('"prompts":12', '"prompts":13'))
    with pytest.raises(Invalid, match=r"step-00000001.json: its SHA-256 is .* restore it from a backup"):
        replay_log.read(1)
    old = json.loads(whole)
    del old["sha256"]
    record.write_text(json.dumps(old))
    assert replay_log.read(1) is not None, "earlier versions wrote no seal"


def test_a_deterministic_run_keeps_its_micro_batches_when_memory_runs_out(
    tiny: Path, prompts: Path, rows_of: list[Any]
) -> None:
    from tests.trainer.policies import policy_of

    policy, _ = policy_of(tiny, prompts)
    prompt = policy.prepare(rows_of[0].messages, rows_of[0].images)
    batch = [MicroBatchItem(prompt, ((7, 8, 9),) * 4, 0, (0, 1, 2, 3))]

    def fail(_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TB")

    with pytest.raises(OutOfMemory, match=r"would change the bits .* smaller micro_batch_tokens, such as \d+"):
        TokenBudget(256, fixed=True).run(lambda tokens: [batch], fail)
