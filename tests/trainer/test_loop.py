"""The whole loop: both processes of the trainer, a real queue server, a real tiny model that samples and is trained."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mor_trainer.loop.ledger import Ledger
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.trainer.kit import TOKENS, Processes, make_spec, write_prompts
from tests.trainer.stages import Stages, until


def liked(ids: tuple[int, ...], text: str) -> float:
    """The rule reward: the share of the response's tokens with an even id, and a little to tell any two apart."""
    del text
    return 4.0 * sum(token % 2 == 0 for token in ids) / len(ids) + sum(ids) % 1009 / 2000


def create(processes: Processes, **fields: Any) -> str:
    with processes.client() as http:
        reply = http.post("/v1/runs", json=json.loads(make_spec(**fields).model_dump_json()))
        assert reply.status_code == 201, reply.text
        return str(reply.json()["id"])


def snapshot(processes: Processes, run: str) -> dict[str, Any]:
    with processes.client("viewer") as http:
        return dict(http.get(f"/v1/runs/{run}").raise_for_status().json())


def finish(processes: Processes, run: str, timeout_s: float = 60) -> dict[str, Any]:
    def over() -> bool:
        found = snapshot(processes, run)
        assert found["state"] not in ("failed", "stopped"), (found["error"], processes.log("work"))
        return bool(found["state"] == "finished")

    until(over, timeout_s, f"run {run} finished")
    return snapshot(processes, run)


def points(processes: Processes, run: str) -> list[dict[str, Any]]:
    with processes.client("viewer") as http:
        return list(http.get(f"/v1/runs/{run}/metrics").raise_for_status().json()["points"])


def alerts(processes: Processes, run: str) -> list[dict[str, Any]]:
    """Alerts as the event stream tells them to a reader who starts from the beginning."""
    found: list[dict[str, Any]] = []
    headers = {"Last-Event-ID": f"{run}/0"}
    with processes.client("viewer") as http, http.stream("GET", f"/v1/runs/{run}/events", headers=headers) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if event["kind"] == "alert":
                    found.append(event["data"])
                if event["kind"] == "state" and event["data"].get("state") == "finished":
                    return found
    raise AssertionError("the stream ended before the run")


def applied_once(history: list[dict[str, Any]]) -> None:
    """Every step is there once, and no group was applied twice."""
    assert [point["step"] for point in history] == list(range(1, len(history) + 1))
    counts = Counter(group for point in history for group in point["applied"])
    assert set(counts.values()) == {1}


def groups_in_order(run: str, count: int) -> list[str]:
    """Ids of a run's groups in the order in which prompts are drawn from a file of twelve."""
    ledger: Ledger[None] = Ledger(run, 12, 0, 0, 1)
    return [ledger.group_id(number) for number in range(count)]


def is_flat(group: str) -> bool:
    return int(group[:4], 16) % 3 == 0


def expect_dynamic_sampling(history: list[dict[str, Any]], run: str) -> None:
    """Each step took the next four groups that teach; those between them are skipped."""
    order = groups_in_order(run, 120)
    teaching = [group for group in order if not is_flat(group)]
    assert [point["applied"] for point in history] == [teaching[4 * s : 4 * s + 4] for s in range(len(history))]
    last = order.index(history[-1]["applied"][-1])
    assert history[-1]["groups_skipped"] == sum(map(is_flat, order[:last]))
    assert history[-1]["groups_applied"] == 4 * len(history)


@pytest.fixture
def stages(redis_url: str, tiny: Path):
    with Stages(redis_url, tiny, liked, TOKENS["service"]) as played:
        yield played


def test_a_run_from_creation_to_the_exported_model(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    processes.serve()
    evaluation = write_prompts(tmp_path / "evaluation", 3)
    run = create(
        processes, model=tiny, prompts=prompts, steps=5, evaluation_prompts=str(evaluation), evaluation_every=3
    )
    assert snapshot(processes, run)["state"] == "queued"
    assert snapshot(processes, run)["step"] is None
    worker = processes.work("--once")
    end = finish(processes, run)
    assert worker.wait(timeout=20) == 0

    history = points(processes, run)
    applied_once(history)
    assert [point["sampled_by"] for point in history] == [[0], [1], [2], [3], [4]], "strictly on-policy"
    first = history[0]
    assert first["importance_ratio_max"] == pytest.approx(1, abs=1e-4), "engine and trainer agree on log-probabilities"
    assert first["effective_sample_share"] == pytest.approx(1, abs=1e-6)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert history[-1]["kl"] > first["kl"]
    assert first["clients"]["alpha"]["weight"] == 1.0
    assert first["clients"]["beta"]["reward_mean"] is None, "a client that did not answer has no reward, not 0"
    assert history[-1]["clients"]["beta"]["failures_total"] == {"timeout": 20}
    assert set(first["domains"]) <= {"charts", "photos"}
    assert sum(first["seconds"].values()) == pytest.approx(first["step_seconds"])
    unaccounted = sum(point["seconds"]["unaccounted"] for point in history)
    assert unaccounted < 0.1 * sum(point["step_seconds"] for point in history)
    assert end["progress"] == 1.0
    assert end["gate_version"] == 3
    assert end["weights_version"] == 5

    with processes.client("viewer") as http:
        evaluations = http.get(f"/v1/runs/{run}/metrics").json()["evaluations"]
        assert [found["step"] for found in evaluations] == [0, 3, 5]
        assert all(found["answered"] == 3 and found["reward"] is not None for found in evaluations)
        assert evaluations[0]["clients"].keys() == {"alpha"}
        samples = http.get(f"/v1/runs/{run}/samples").json()["samples"]
        assert {"prompt", "responses", "rewards", "advantages", "clients"} <= samples[0].keys()
        assert len(http.get(f"/v1/runs/{run}/checkpoints").json()["checkpoints"]) == 3
    assert not any(group in stages.sampled for group in stages.evaluated)
    assert set(stages.sampled.values()) == {1}, "no group is sampled twice when nothing went wrong"
    assert history[-1]["groups_retried"] == history[-1]["groups_duplicate"] == 0

    final = Path(end["final"])
    assert final == (processes.runs_dir / run / "final").resolve()
    aligned = AutoModelForImageTextToText.from_pretrained(final)
    AutoProcessor.from_pretrained(final)
    base = AutoModelForImageTextToText.from_pretrained(tiny)
    trained = dict(aligned.named_parameters())
    changed = {name for name, tensor in base.named_parameters() if not tensor.equal(trained[name])}
    assert any("text_model" in name for name in changed)
    assert not any("vision" in name or "connector" in name for name in changed), "the tower is frozen"


def test_killed_at_any_time_it_resumes_and_applies_each_group_once(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    stages.flat = lambda record: is_flat(record.group_id)
    algorithm = {"dynamic_sampling": {"max_factor": 10}}
    run = create(processes, model=tiny, prompts=prompts, steps=8, checkpoint_every=3, algorithm=algorithm)
    killed = processes.work()
    until(lambda: (snapshot(processes, run)["step"] or 0) >= 5, 60, "step 5")
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


def test_the_queue_server_may_be_flushed_and_killed(
    tmp_path: Path, tokens_file: Path, valkey: Any, tiny: Path, prompts: Path
) -> None:
    from redis import Redis

    processes = Processes(tmp_path / "runs", tokens_file, valkey.url, tmp_path)
    try:
        processes.serve()
        with Stages(valkey.url, tiny, liked, TOKENS["service"]), ExitStack() as working:
            run = create(processes, model=tiny, prompts=prompts, steps=14)
            working.enter_context(processes.working())
            until(lambda: (snapshot(processes, run)["step"] or 0) >= 3, 60, "step 3")
            with Redis(port=valkey.port) as client:
                client.flushall()
            until(lambda: (snapshot(processes, run)["step"] or 0) >= 7, 40, "steps after the flush")
            valkey.kill()
            valkey.start()
            finish(processes, run)
        applied_once(points(processes, run))
        assert [alert["name"] for alert in alerts(processes, run)].count("queue_lost") == 2
    finally:
        processes.end()


def test_lost_buried_and_tampered_groups(processes: Processes, stages: Stages, tiny: Path, prompts: Path) -> None:
    processes.serve()
    first_time: set[str] = set()

    def once(kind: int, group: str) -> bool:
        chosen = int(group[0], 16) % 4 == kind and group not in first_time
        if chosen:
            first_time.add(group)
        return chosen

    stages.lose = lambda record: once(0, record.group_id)
    stages.bury = lambda record: once(1, record.group_id)
    stages.tamper = lambda record: (
        record.model_copy(update={"pixels": "0" * 64}) if int(record.group_id[0], 16) == 6 else record
    )
    run = create(processes, model=tiny, prompts=prompts, steps=6, max_staleness=1, keep_weights=4)
    with processes.working():
        finish(processes, run)
    history = points(processes, run)
    applied_once(history)
    assert first_time
    assert history[-1]["groups_retried"] >= len(first_time & {g for point in history for g in point["applied"]})
    assert max(point["staleness_max"] for point in history) <= 1
    tampered = {group for group in stages.sampled if int(group[0], 16) == 6}
    assert not tampered & {group for point in history for group in point["applied"]}
    told = [alert for alert in alerts(processes, run) if alert["name"] == "group_dropped"]
    assert history[-1]["groups_dropped"] == len(told)
    assert {alert["group_id"] for alert in told} <= tampered
    assert all("pixels hash to 0000" in alert["reason"] for alert in told)


@pytest.mark.timeout(600)
def test_a_dropped_group_is_issued_again_when_an_operator_asks(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    processes.environment |= {"MOR_GROUP_ATTEMPTS": "1", "MOR_GROUP_TIMEOUT_S": "300"}
    buried: set[str] = set()

    def bury_one(record: Any) -> bool:
        if not buried:
            buried.add(record.group_id)
        return record.group_id in buried

    stages.bury = bury_one
    run = create(processes, model=tiny, prompts=prompts, steps=500)
    with processes.working(), processes.client() as http:

        def dead() -> list[dict[str, Any]]:
            return list(http.get(f"/v1/runs/{run}/dead").raise_for_status().json())

        until(lambda: bool(dead()), 120, "a group was given up")
        (letter,) = dead()
        assert (letter["reason"], letter["stage"], letter["replay"]) == ("the sampler broke down", "rollout", "no")
        assert {letter["group_id"]} == buried
        assert http.get(f"/v1/runs/{run}/dead/{letter['id']}").json()["record"]
        stages.bury = lambda record: False
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


def test_groups_that_teach_nothing_are_replaced(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    stages.flat = lambda record: is_flat(record.group_id)
    algorithm = {"dynamic_sampling": {"max_factor": 10}}
    run = create(processes, model=tiny, prompts=prompts, steps=5, algorithm=algorithm)
    with processes.working():
        finish(processes, run)
    history = points(processes, run)
    applied_once(history)
    expect_dynamic_sampling(history, run)
    assert all(len(point["sampled_by"]) == 1 for point in history), "strictly on-policy"
    settled = history[-1]["groups_applied"] + history[-1]["groups_skipped"]
    assert set(stages.sampled) == set(groups_in_order(run, settled)), "no more groups are issued than a step needs"
    assert 0 < max(point["zero_variance_ratio"] for point in history) < 1, "told of all groups that were scored"


def test_a_stop_in_the_middle_of_a_step_forgets_no_skipped_group(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=3, algorithm={"dynamic_sampling": {"max_factor": 10}})
    order = groups_in_order(run, 120)
    flat, missing = order[1], order[4]  # of the first step, and what replaces it
    stages.flat = lambda record: record.group_id == flat
    held = {missing}
    stages.lose = lambda record: record.group_id in held
    with processes.client() as http, processes.working():
        until(lambda: stages.sampled[missing] > 0, 60, "the replacement was sampled, and lost")
        http.post(f"/v1/runs/{run}/stop").raise_for_status()
        until(lambda: snapshot(processes, run)["state"] == "stopped", 20, "stopped in the first step")
        assert snapshot(processes, run)["step"] is None
        held.clear()
        http.post(f"/v1/runs/{run}/resume").raise_for_status()
        finish(processes, run)
    history = points(processes, run)
    applied = [group for group in order if group != flat]
    assert [point["applied"] for point in history] == [applied[4 * s : 4 * s + 4] for s in range(3)]
    assert history[-1]["groups_skipped"] == 1
    assert stages.sampled[flat] == 2, "put back with the others, and skipped again"


def test_a_step_ends_where_no_group_teaches(processes: Processes, stages: Stages, tiny: Path, prompts: Path) -> None:
    processes.serve()
    stages.flat = lambda record: True
    algorithm = {"dynamic_sampling": {"max_factor": 1.5}}
    run = create(processes, model=tiny, prompts=prompts, steps=2, algorithm=algorithm)
    with processes.working():
        finish(processes, run)
    history = points(processes, run)
    assert [point["groups_skipped"] for point in history] == [2, 4]
    assert [len(point["applied"]) for point in history] == [4, 4]
    assert [point["zero_variance_ratio"] for point in history] == [1.0, 1.0]


def test_pause_resume_stop(processes: Processes, stages: Stages, tiny: Path, prompts: Path) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=400, checkpoint_every=100)
    with processes.client() as http, processes.working() as worker:
        until(lambda: (snapshot(processes, run)["step"] or 0) >= 1, 60, "step 1")
        assert http.post(f"/v1/runs/{run}/pause").status_code == 202
        until(lambda: snapshot(processes, run)["state"] == "paused", 20, "paused")
        paused_at = snapshot(processes, run)["step"]
        assert http.post(f"/v1/runs/{run}/resume").status_code == 202
        until(lambda: snapshot(processes, run)["step"] > paused_at, 20, "going on")
        http.post(f"/v1/runs/{run}/stop")
        until(lambda: snapshot(processes, run)["state"] == "stopped", 20, "stopped")
        stopped_at = snapshot(processes, run)["step"]
        assert http.post(f"/v1/runs/{run}/resume").json()["state"] in ("queued", "running")
        until(lambda: snapshot(processes, run)["step"] > stopped_at, 30, "continued from the checkpoint")
        worker.end()
        until(lambda: snapshot(processes, run)["state"] == "queued", 20, "handed back, not lost")
        http.post(f"/v1/runs/{run}/stop")
    applied_once(points(processes, run))


def test_a_run_whose_model_cannot_be_loaded_fails_with_the_reason(
    processes: Processes, tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    processes.serve()
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    run = create(processes, model=broken, prompts=prompts)
    with processes.working():
        until(lambda: snapshot(processes, run)["state"] == "failed", 30, "failed")
    assert "broken" in snapshot(processes, run)["error"] or "header" in snapshot(processes, run)["error"]


def test_a_run_that_nobody_samples_fails_and_says_who_is_missing(
    processes: Processes, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    processes.environment["MOR_STALL_TIMEOUT_S"] = "1"
    run = create(processes, model=tiny, prompts=prompts)
    with processes.working():
        until(lambda: snapshot(processes, run)["state"] == "failed", 30, "failed")
    error = snapshot(processes, run)["error"]
    assert "'prompts': 4, 'rollouts': 0" in error
    assert "is the rollout service running?" in error


def test_groups_over_the_token_budget_are_divided_and_told_once(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=2, group_size=8, micro_batch_tokens=50)
    with processes.working():
        finish(processes, run)
    applied_once(points(processes, run))
    (told,) = [alert for alert in alerts(processes, run) if alert["name"] == "group_divided"]
    assert "more than micro_batch_tokens=50 tokens" in told["reason"]


def test_a_prompt_that_cannot_fit_the_token_budget_fails_the_run_and_is_named(
    processes: Processes, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, micro_batch_tokens=20)
    with processes.working():
        until(lambda: snapshot(processes, run)["state"] == "failed", 30, "failed")
    error = snapshot(processes, run)["error"]
    assert re.search(r"prompt 'p\d+' has \d+ tokens .* does not fit micro_batch_tokens=20; raise", error), error
