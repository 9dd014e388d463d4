"""The whole loop under faults: no group is lost or applied twice, and the reason is reported."""

from __future__ import annotations

import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mor_trainer.groups import recovery

from tests.trainer.kit import TOKENS, Processes
from tests.trainer.stages import Stages, share_of_even_tokens, until
from tests.trainer.watching import (
    alerts,
    applied_once,
    create,
    expect_dynamic_sampling,
    finish,
    is_flat,
    points,
    snapshot,
)


def test_a_killed_worker_resumes_and_applies_each_group_once(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    stages.flat = lambda record: is_flat(record.group_id)
    algorithm = {"dynamic_sampling": {"max_factor": 10}}
    run = create(processes, model=tiny, prompts=prompts, steps=8, checkpoint_every=3, algorithm=algorithm)
    killed = processes.work()
    with stages.halting_after(5):
        until(lambda: (snapshot(processes, run)["step"] or 0) >= 5, 200, "step 5")
        killed.send_signal(signal.SIGKILL)
        killed.wait(timeout=10)
    published = snapshot(processes, run)["weights_version"]
    until(lambda: snapshot(processes, run)["state"] == "queued", 10, "the lease ended")
    with processes.working():
        end = finish(processes, run)
    history = points(processes, run)
    applied_once(history)
    assert end["weights_version"] > published, "versions only grow"
    lineage = [version for point in history for version in point["sampled_by"]]
    assert lineage == sorted(lineage), "no group of the lost lineage was trained on"
    expect_dynamic_sampling(history, run)


def test_a_run_survives_a_flushed_and_a_killed_queue_server(
    tmp_path: Path, tokens_file: Path, valkey: Any, tiny: Path, prompts: Path, checks_dir: Path
) -> None:
    from redis import Redis

    processes = Processes(tmp_path / "runs", tokens_file, valkey.url, tmp_path)
    processes.environment["MOR_CHECKS_DIR"] = str(checks_dir)
    try:
        processes.serve()
        stages = Stages(valkey.url, tiny, share_of_even_tokens, TOKENS["service"], lambda: processes.address)
        with stages, ExitStack() as working:
            run = create(processes, model=tiny, prompts=prompts, steps=14)
            working.enter_context(processes.working())
            with stages.halting_after(3), Redis(port=valkey.port) as client:
                until(lambda: (snapshot(processes, run)["step"] or 0) >= 3, 200, "step 3")
                client.flushall()
            with stages.halting_after(7):
                until(lambda: (snapshot(processes, run)["step"] or 0) >= 7, 40, "steps after the flush")
                valkey.kill()
            valkey.start()
            finish(processes, run)
        applied_once(points(processes, run))
        assert [alert["name"] for alert in alerts(processes, run)].count("queue_lost") == 2
    finally:
        processes.end()


def test_lost_and_failed_groups_are_issued_again_and_tampered_ones_dropped(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_FAULT_FIRST_S", 0.05)
    processes.serve()
    processes.environment["MOR_GROUP_TIMEOUT_S"] = "1"
    first_time: set[str] = set()

    def once(kind: int, group: str) -> bool:
        chosen = int(group[0], 16) % 4 == kind and group not in first_time
        if chosen:
            first_time.add(group)
        return chosen

    stages.lose = lambda record: once(0, record.group_id)
    stages.fail = lambda record: once(1, record.group_id)
    stages.tamper = lambda record: (
        record.model_copy(update={"pixels": "0" * 64}) if int(record.group_id[0], 16) == 6 else record
    )
    stages.absurd = lambda record: int(record.group_id[0], 16) == 7
    emptied: list[str] = []

    def empty(record: Any) -> bool:
        """Choose the first group that nothing else happens to."""
        if not emptied and record.purpose == "train" and int(record.group_id[0], 16) in (2, 3, 10, 11, 14, 15):
            emptied.append(record.group_id)
        return record.group_id in emptied

    stages.empty = empty
    run = create(processes, model=tiny, prompts=prompts, steps=6, max_staleness=1, keep_weights=4, max_bad_prompts=1)
    with processes.working():
        finish(processes, run)
    history = points(processes, run)
    applied_once(history)
    assert first_time
    assert history[-1]["groups_retried"] >= len(first_time & {g for point in history for g in point["applied"]})
    assert max(point["staleness_max"] for point in history) <= 1
    tampered = {group for group in stages.sampled if int(group[0], 16) in (6, 7)} | {*emptied}
    assert not tampered & {group for point in history for group in point["applied"]}
    dropped = [alert for alert in alerts(processes, run) if alert["name"] == "group_dropped"]
    assert history[-1]["groups_dropped"] == len(dropped)
    assert {alert["group_id"] for alert in dropped} <= tampered
    for alert in dropped:
        expected = {"6": "pixels hash to 0000", "7": "a reward of -1e+13"}
        assert expected.get(alert["group_id"][0], "a response without tokens") in alert["reason"]
    assert {*emptied} <= {alert["group_id"] for alert in dropped}


@pytest.mark.timeout(600)
def test_a_dropped_group_is_issued_again_at_an_operators_request(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_ANSWER_S", 3.0)
    processes.serve()
    processes.environment |= {"MOR_GROUP_ATTEMPTS": "1", "MOR_GROUP_TIMEOUT_S": "300"}
    failed: set[str] = set()

    def fail_one(record: Any) -> bool:
        if not failed:
            failed.add(record.group_id)
        return record.group_id in failed

    stages.fail = fail_one
    guards = {"kl": "alert", "entropy": "alert", "identical": "alert"}  # a run that is paused answers nothing
    run = create(processes, model=tiny, prompts=prompts, steps=10_000, guards=guards)
    with processes.working(), processes.client() as http:

        def dead() -> list[dict[str, Any]]:
            return list(http.get(f"/v1/runs/{run}/dead").raise_for_status().json())

        until(lambda: bool(dead()), 120, "a group was given up")
        (letter,) = dead()
        assert letter["reason"].endswith(": the sampler broke down")
        assert (letter["stage"], letter["replay"]) == ("rollout", "no")
        assert {letter["group_id"]} == failed
        assert http.get(f"/v1/runs/{run}/dead/{letter['id']}").json()["record"]
        stages.fail = lambda record: False
        assert http.post(f"/v1/runs/{run}/dead/{letter['id']}/replay").json()["replay"] == "asked"
        until(lambda: dead()[0]["replay"] == "issued", 120, "the group was issued again")

        def applied() -> bool:
            return any(letter["group_id"] in point["applied"] for point in points(processes, run))

        until(applied, 120, "the group was trained on")
        assert http.post(f"/v1/runs/{run}/dead/{letter['id']}/replay").json()["replay"] == "asked"
        until(lambda: dead()[0]["replay"] == "not dropped", 120, "the second replay was answered")
        sample = http.get(f"/v1/runs/{run}/samples").json()["samples"][0]
        assert http.get(f"/v1/runs/{run}/images/{sample['images'][0]}").headers["content-type"] == "image/jpeg"
        http.post(f"/v1/runs/{run}/stop")
        until(lambda: snapshot(processes, run)["state"] == "stopped", 120, "the run stopped")
    history = points(processes, run)
    applied_once(history)
    assert history[-1]["groups_dropped"] == 0


def test_a_run_whose_model_cannot_be_loaded_fails_with_the_reason(
    processes: Processes, tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    processes.serve()
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    run = create(processes, model=broken, prompts=prompts)
    (broken / "model.safetensors").write_bytes(b"not weights")  # one that is broken before is refused at once
    with processes.working():
        until(lambda: snapshot(processes, run)["state"] == "failed", 30, "failed")
    assert "not a safetensors file" in snapshot(processes, run)["error"]


def test_a_group_that_waits_in_a_stream_is_not_issued_again(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    """Not even while others come back: the router may wait for a client that only this group needs."""
    processes.serve()
    processes.environment |= {"MOR_GROUP_TIMEOUT_S": "1", "MOR_GROUP_ATTEMPTS": "1"}
    held: list[str] = []

    def hold(record: Any) -> bool:
        """Hold the first group twice: for two leases."""
        if not held:
            held.append(record.group_id)
        if record.group_id == held[0] and len(held) < 3:
            held.append(record.group_id)
            return True
        return False

    stages.hold = hold
    stages.lease_s = 2.0
    run = create(processes, model=tiny, prompts=prompts, steps=2, max_staleness=1, keep_weights=4)
    with processes.working():
        finish(processes, run)
    history = points(processes, run)
    applied_once(history)
    assert stages.sampled[held[0]] == 1
    assert (history[-1]["groups_retried"], history[-1]["groups_dropped"]) == (0, 0)


def test_a_run_without_a_rollout_service_fails_and_names_it(processes: Processes, tiny: Path, prompts: Path) -> None:
    processes.serve()
    processes.environment["MOR_STALL_TIMEOUT_S"] = "1"
    run = create(processes, model=tiny, prompts=prompts)
    with processes.working():
        until(lambda: snapshot(processes, run)["state"] == "failed", 30, "failed")
    error = snapshot(processes, run)["error"]
    assert "'prompts': 4, 'rollouts': 0" in error
    assert "is the rollout service running?" in error
