"""The whole loop: both processes of the trainer, a real queue server, and a tiny model that samples and is trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mor_core.runs import RunSpec
from mor_trainer.groups.ledger import Ledger
from mor_trainer.groups.prompt_order import PromptOrder
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.trainer.kit import Processes, write_prompts
from tests.trainer.stages import Stages, until
from tests.trainer.watching import (
    alerts,
    applied_once,
    create,
    expect_dynamic_sampling,
    finish,
    groups_in_order,
    is_flat,
    points,
    snapshot,
)


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
        kept = http.get(f"/v1/runs/{run}/checkpoints").json()["checkpoints"]
        kept_steps = [checkpoint["step"] for checkpoint in kept]
        assert kept_steps[-2:] == [4, 5] and set(kept_steps[:-2]) <= {2}, (
            "that of step 2 stays for its evaluation alone"
        )
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


def test_groups_without_signal_are_replaced(processes: Processes, stages: Stages, tiny: Path, prompts: Path) -> None:
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
    assert 0 < max(point["zero_variance_ratio"] for point in history) < 1, (
        "the metric covers all groups that were scored"
    )


def test_a_stop_in_the_middle_of_a_step_keeps_skipped_groups(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=3, algorithm={"dynamic_sampling": {"max_factor": 10}})
    order = groups_in_order(run, 120)
    flat, missing = order[1], order[4]  # of the first step, and what replaces it
    stages.flat = lambda record: record.group_id == flat
    lost = {missing}
    stages.lose = lambda record: record.group_id in lost
    with processes.client() as http, processes.working():
        until(lambda: stages.sampled[missing] > 0, 200, "the replacement was sampled, and lost")
        http.post(f"/v1/runs/{run}/stop").raise_for_status()
        until(lambda: snapshot(processes, run)["state"] == "stopped", 20, "stopped in the first step")
        assert snapshot(processes, run)["step"] is None
        lost.clear()
        http.post(f"/v1/runs/{run}/resume").raise_for_status()
        finish(processes, run)
    history = points(processes, run)
    applied = [group for group in order if group != flat]
    assert [point["applied"] for point in history] == [applied[4 * s : 4 * s + 4] for s in range(3)]
    assert history[-1]["groups_skipped"] == 1
    assert stages.sampled[flat] == 2, "put back with the others, and skipped again"


def test_a_step_ends_when_no_group_has_signal(processes: Processes, stages: Stages, tiny: Path, prompts: Path) -> None:
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


def test_a_run_can_be_paused_resumed_and_stopped(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=400, checkpoint_every=100)
    with processes.client() as http, processes.working() as worker:
        until(lambda: (snapshot(processes, run)["step"] or 0) >= 1, 200, "step 1")
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


def test_a_run_draws_from_its_sources_by_weight_across_a_stop(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    sources = [
        {"name": "charts", "prompts": str(prompts), "domain": "charts", "weight": 3},
        {"name": "photos", "prompts": str(prompts), "domain": "photos", "order": "file"},
    ]
    run = create(processes, model=tiny, prompts=None, steps=6, sources=sources)
    with processes.working():
        with processes.client() as http:
            with stages.halting_after(2):
                until(lambda: (snapshot(processes, run)["step"] or 0) >= 2, 200, "step 2")
                http.post(f"/v1/runs/{run}/stop").raise_for_status()
                until(lambda: snapshot(processes, run)["state"] == "stopped", 20, "the run stopped")
            http.post(f"/v1/runs/{run}/resume").raise_for_status()
            spec = RunSpec.model_validate(http.get(f"/v1/runs/{run}/spec").json())
        finish(processes, run)
    history = points(processes, run)
    ledger: Ledger[None] = Ledger(run, PromptOrder.of_run(spec, (6, 6)), 0, 1)
    assert [group for point in history for group in point["applied"]] == [ledger.group_id(n) for n in range(24)]
    for point in history:
        drawn = 4 * point["step"]
        charts, photos = point["sources"]["charts"], point["sources"]["photos"]
        assert (charts["groups"], photos["groups"]) == (3, 1), "the weights, in each step of four groups"
        assert (charts["drawn"], charts["drawn_ratio"], charts["expected_ratio"]) == (drawn * 3 // 4, 0.75, 0.75)
        assert (photos["drawn"], photos["epochs"]) == (drawn // 4, drawn // 4 / 6)
        assert point["domains"]["charts"]["reward_mean"] == charts["reward_mean"]


def test_groups_over_the_token_budget_are_divided_with_one_alert(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=2, group_size=8, micro_batch_tokens=50)
    with processes.working():
        finish(processes, run)
    applied_once(points(processes, run))
    (alert,) = [found for found in alerts(processes, run) if found["name"] == "group_divided"]
    assert "more than micro_batch_tokens=50 tokens" in alert["reason"]


def test_a_prompt_over_the_token_budget_fails_the_run_and_is_named(
    processes: Processes, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, micro_batch_tokens=20)
    with processes.working():
        until(lambda: snapshot(processes, run)["state"] == "failed", 200, "failed")
    error = snapshot(processes, run)["error"]
    assert re.search(r"'p\d+': the prompt has \d+ tokens .* does not fit micro_batch_tokens=20; raise", error), error
