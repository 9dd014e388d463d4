"""All prompts of a run are checked before its first step: bad ones are left out by name, too many end it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mor_core.errors import DataFileError, Invalid
from mor_core.preflight_status import PreflightStatus
from mor_core.prompt_index import PromptSet, open_prompts
from mor_core.prompt_index.file_lock import FileLock
from mor_core.prompt_limits import PromptLimits
from mor_core.prompt_sources import PromptFile
from mor_core.runs import RunSpec
from mor_trainer.config import WorkerSettings
from mor_trainer.prompts import preflight
from mor_trainer.prompts.preflight import Preflight
from mor_trainer.prompts.prompt_hashes import PromptsHash, check_unchanged
from mor_trainer.prompts.run_prompts import open_files
from mor_trainer.prompts.stored_checks import read_run_checks

from tests.core.published_rows import png
from tests.trainer.kit import Processes, write_prompts
from tests.trainer.stages import Stages, until
from tests.trainer.watching import alerts, applied_once, create, finish, points, snapshot


def with_rows(folder: Path, *rows: Any, good: int = 12) -> Path:
    """Write good prompts and, between the first and the second, ``rows``."""
    path = write_prompts(folder, good)
    first, *others = path.read_text().splitlines()
    lines = [first, *(row if isinstance(row, str) else json.dumps(row) for row in rows), *others]
    path.write_text("\n".join(lines))
    return path


LONG = {"id": "long", "prompt": "word " * 60}
BROKEN = '{"id": "broken", "prompt": '
LACKING = {"id": "lacking", "prompt": "What is it?", "images": ["images/none.png"]}


def bad_prompts(processes: Processes, run: str) -> dict[str, Any]:
    with processes.client("viewer") as http:
        return dict(http.get(f"/v1/runs/{run}/bad-prompts").raise_for_status().json())


def test_bad_rows_are_left_out_by_name_and_never_sampled(
    processes: Processes, stages: Stages, tiny: Path, tmp_path: Path
) -> None:
    processes.serve()
    data = with_rows(tmp_path, LONG, BROKEN, LACKING)
    fields = {"model": tiny, "prompts": data, "steps": 4, "max_bad_prompts": 0.25}
    run = create(processes, evaluation_prompts=str(data), evaluation_every=4, **fields)
    with processes.working():
        finish(processes, run)
    applied_once(points(processes, run))
    assert points(processes, run)[-1]["groups_dropped"] == 0
    check = snapshot(processes, run)["preflight"]
    assert (check["state"], check["rows"], check["total"], check["bad"]) == ("done", 15, 15, 3)
    listed = bad_prompts(processes, run)
    assert [(row["line"], row["id"]) for row in listed["listed"][:3]] == [(2, "long"), (3, ""), (4, "lacking")]
    assert "micro_batch_tokens=256" in listed["listed"][0]["problem"]
    told = [alert["reason"] for alert in alerts(processes, run) if alert["name"] == "prompts_left_out"]
    assert len(told) == 1
    assert f"3 of 15 prompts are left out: {data}:2 'long': the prompt has" in told[0]
    assert len(stages.evaluated) == 24  # two rounds of the twelve good rows


def test_too_many_bad_rows_end_the_run_before_its_first_step(processes: Processes, tiny: Path, tmp_path: Path) -> None:
    processes.serve()
    data = with_rows(tmp_path, LONG, BROKEN)
    run = create(processes, model=tiny, prompts=data, steps=4)
    with processes.working():
        until(lambda: snapshot(processes, run)["state"] == "failed", 200, "the run failed")
    error = snapshot(processes, run)["error"]
    assert f"2 of 14 prompts of {data} cannot be used, max_bad_prompts=0.05 allows 1" in error
    assert f"{data}:2 'long'" in error
    assert f"{data}:3" in error
    assert f"mor run bad-prompts {run}" in error
    assert bad_prompts(processes, run)["bad"] == 2
    assert not points(processes, run)


def test_a_resumed_run_leaves_out_the_same_rows_without_another_check(
    processes: Processes, stages: Stages, tiny: Path, tmp_path: Path
) -> None:
    processes.serve()
    data = with_rows(tmp_path, LONG)
    run = create(processes, model=tiny, prompts=data, steps=6, max_bad_prompts=0.1)
    with processes.working() as worker, stages.halting_after(2):
        until(lambda: (snapshot(processes, run)["step"] or 0) >= 2, 200, "two steps")
        worker.end()
    processes.environment["MOR_CHECKS_DIR"] = str(tmp_path / "checks")
    processes.environment["MOR_INDEX_DIR"] = str(tmp_path / "index")  # as after an upgrade, it is read again
    with processes.working():
        finish(processes, run)
    assert not (tmp_path / "checks").exists(), "checked again"
    check = snapshot(processes, run)["preflight"]
    assert (check["state"], check["rows"], check["bad"], check["found"][0]["id"]) == ("done", 13, 1, "long")
    applied_once(points(processes, run))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.write_bytes(b"{\0"), marks=pytest.mark.slow, id="damaged"),
        pytest.param(Path.unlink, id="missing"),
    ],
)
def test_a_resumed_run_is_checked_again_where_the_result_is_gone(
    processes: Processes, stages: Stages, tiny: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    processes.serve()
    data = with_rows(tmp_path, LONG, BROKEN)
    run = create(processes, model=tiny, prompts=data, steps=4, max_bad_prompts=0.2)
    with processes.working() as worker, stages.halting_after(2):
        until(lambda: (snapshot(processes, run)["step"] or 0) >= 2, 200, "two steps")
        worker.end()
    damage(tmp_path / "runs" / run / "preflight.json")
    with processes.working():
        finish(processes, run)
    assert bad_prompts(processes, run)["bad"] == 2
    applied_once(points(processes, run))


def test_a_resumed_run_refuses_prompts_whose_text_was_edited(
    processes: Processes, stages: Stages, tiny: Path, tmp_path: Path
) -> None:
    processes.serve()
    data = with_rows(tmp_path)
    run = create(processes, model=tiny, prompts=data, steps=50)
    with processes.working() as worker, stages.halting_after(2):
        until(lambda: (snapshot(processes, run)["step"] or 0) >= 2, 200, "two steps")
        worker.end()
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[4]["prompt"] = "What else is it?"
    data.write_text("\n".join(map(json.dumps, rows)))
    with processes.working():
        until(lambda: snapshot(processes, run)["state"] == "failed", 200, "the run failed")
    error = snapshot(processes, run)["error"]
    assert f"the prompts of {data} are not those with which the run began" in error
    assert f"the first change is in {data}:5" in error


@pytest.mark.parametrize("change", ["text", "picture", "domain", "role", "order", "fewer"])
def test_a_change_of_a_prompt_is_found_and_other_changes_are_none(tmp_path: Path, change: str) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"What is {n}?", "images": ["a.png"]} for n in range(3)]
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        (tmp_path / name).write_bytes(png(colour))
    file = PromptFile(str(tmp_path / "rows.jsonl"), "")

    def opened(name: str, *written: dict[str, Any]) -> PromptSet:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in written))
        return open_prompts(path, index_dir=tmp_path / "index")

    begun = PromptsHash.of(file, opened("rows.jsonl", *rows))
    renamed = [row | {"id": f"row {n}", "images": ["./a.png"]} for n, row in enumerate(rows)]
    check_unchanged({file: opened("other.jsonl", *renamed)}, [begun], None)
    first, second, third = rows
    changed = {
        "text": [first, second | {"prompt": "What is 1 ?"}, third],
        "picture": [first, second | {"images": ["b.png"]}, third],
        "domain": [first, second | {"domain": "chart"}, third],
        "role": [first, second | {"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}],
        "order": [first, third, second],
        "fewer": [first, second],
    }[change]
    with pytest.raises(Invalid, match="restore the file"):
        check_unchanged({file: opened("rows.jsonl", *changed)}, [begun], None)


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_check_hands_the_run_back(
    processes: Processes, tiny: Path, tmp_path: Path
) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=with_rows(tmp_path, LONG), steps=4)
    worker = processes.work(group=True)
    checking = lambda: (snapshot(processes, run)["preflight"] or {"state": None})["state"] == "checking"  # noqa: E731
    until(checking, 200, "rows are checked")
    os.killpg(worker.pid, signal.SIGTERM)  # as torchrun and systemd do
    until(lambda: snapshot(processes, run)["state"] != "running", 20, "the worker ended its attempt")
    assert snapshot(processes, run)["state"] == "queued", snapshot(processes, run)["error"]


def many_prompts(folder: Path) -> Path:
    data = folder / "many.jsonl"
    data.write_text("".join(json.dumps({"id": f"q{n}", "prompt": f"What is {n}? " * 5}) + "\n" for n in range(100_000)))
    return data


def test_a_run_that_is_paused_while_it_reads_keeps_no_other_one_waiting(
    processes: Processes, tiny: Path, tmp_path: Path
) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=many_prompts(tmp_path), steps=4)
    state = lambda: (snapshot(processes, run)["preflight"] or {"state": None})["state"]  # noqa: E731
    with processes.working(), processes.client() as http:
        until(lambda: state() == "reading", 200, "rows are read")
        http.post(f"/v1/runs/{run}/pause").raise_for_status()
        until(lambda: snapshot(processes, run)["state"] == "paused", 10, "the run paused")
        [lock] = (tmp_path / "runs" / "_prompt_index").glob(".*.lock")
        held = FileLock.acquire(lock)
        assert held is not None, "the index is still locked"
        held.release()
        http.post(f"/v1/runs/{run}/resume").raise_for_status()
        until(lambda: state() == "checking", 200, "the rows were read anew")
        http.post(f"/v1/runs/{run}/stop").raise_for_status()
        until(lambda: snapshot(processes, run)["state"] == "stopped", 10, "the run stopped")


def test_rows_whose_pictures_changed_are_bad_for_that_run_alone(tiny: Path, tmp_path: Path) -> None:
    data = with_rows(tmp_path, {"id": "shown", "prompt": "What is it?", "images": ["shown.png"]}, good=2)
    (tmp_path / "shown.png").write_bytes(png("red"))
    spec = RunSpec.model_validate({"name": "r", "model": str(tiny), "prompts": str(data), "max_bad_prompts": 0.5})
    settings = WorkerSettings(runs_dir=tmp_path / "runs", check_processes=1)
    open_files(settings, spec, lambda rows: None)

    def check(run: str) -> PreflightStatus:
        told: list[PreflightStatus] = []
        folder = settings.runs_dir / run
        files = open_files(settings, spec, lambda rows: None)
        Preflight(settings, run, spec, folder, limits=PromptLimits(), report=told.append, obey=lambda: None).run(files)
        return told[-1]

    (tmp_path / "shown.png").unlink()
    lost = check("first")
    assert (lost.rows, lost.total, lost.bad, lost.found[0].id) == (3, 3, 1, "shown")
    (tmp_path / "shown.png").write_bytes(png("red"))
    assert check("second").bad == 0
    (tmp_path / "shown.png").write_bytes(png("blue"))
    assert check("third").bad == 0  # the result is known, and a group that shows the picture fails
    with pytest.raises(DataFileError, match="create the run again"):
        open_files(settings, spec, lambda rows: None)[spec.training_files()[0]][1]
    assert check("fourth").bad == 0
    assert len(open_files(settings, spec, lambda rows: None)[spec.training_files()[0]][:]) == 3


def test_the_results_of_a_run_are_bounded(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MOST_LISTED_OF_RUN", 3)
    sources = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        data = with_rows(tmp_path / name, *[{"x" * 500: 1, **{f"{n:0>100}": 1 for n in range(9)}}] * 2)
        sources.append({"name": name, "prompts": str(data)})
    spec = RunSpec.model_validate({"name": "r", "model": str(tiny), "sources": sources, "max_bad_prompts": 0.5})
    settings = WorkerSettings(runs_dir=tmp_path / "runs", check_processes=1)
    check = Preflight(settings, "r", spec, tmp_path, limits=PromptLimits(), report=lambda _: None, obey=lambda: None)
    check.run(open_files(settings, spec, lambda rows: None))
    stored = read_run_checks(tmp_path)
    assert stored is not None
    assert [(one.result.bad, len(one.result.listed)) for one in stored.files] == [(2, 2), (2, 1)]
    assert {len(row.problem) for one in stored.files for row in one.result.listed} == {600}


def test_a_domain_that_no_row_has_is_told_before_the_check(tiny: Path, tmp_path: Path) -> None:
    data = with_rows(tmp_path, {"prompt": "Why?", "domain": "maps"})
    sources = [{"name": "s", "prompts": str(data), "domain": "map"}]
    spec = RunSpec.model_validate({"name": "r", "model": str(tiny), "sources": sources})
    settings = WorkerSettings(runs_dir=tmp_path / "runs")
    told: list[PreflightStatus] = []
    checks = Preflight(
        settings, "r", spec, tmp_path / "r", limits=PromptLimits(), report=told.append, obey=lambda: None
    )
    with pytest.raises(Invalid, match=r"no row has the domain 'map'; the file has .*'maps'"):
        checks.run(open_files(settings, spec, lambda rows: None))
    assert not [status for status in told if status.state != "reading"]


def test_a_run_is_stopped_and_paused_during_the_check(processes: Processes, tiny: Path, tmp_path: Path) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=many_prompts(tmp_path), steps=4)
    with processes.working(), processes.client() as http:
        checking = lambda: (snapshot(processes, run)["preflight"] or {"state": None})["state"] == "checking"  # noqa: E731
        until(checking, 200, "rows are checked")
        http.post(f"/v1/runs/{run}/pause").raise_for_status()
        until(lambda: snapshot(processes, run)["state"] == "paused", 10, "the run paused")
        http.post(f"/v1/runs/{run}/resume").raise_for_status()
        until(lambda: snapshot(processes, run)["state"] == "running", 10, "the run continued")
        http.post(f"/v1/runs/{run}/stop").raise_for_status()
        until(lambda: snapshot(processes, run)["state"] == "stopped", 10, "the run stopped")
