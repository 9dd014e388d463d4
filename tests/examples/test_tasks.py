"""Tasks of the demonstration: what begins when, what ends with a failure, and how their progress is read."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from three_domains import prepare
from three_domains.prepare import PreparationStep, StepFailed
from three_domains.tasks import Call, Command, Task, run_tasks


class Events:
    """Observer that keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def begun(self, task: Task) -> None:
        self.seen.append(f"{task.title} begins")

    def ended(self, task: Task) -> None:
        self.seen.append(f"{task.title} ends")

    def look(self) -> None:
        """Keep nothing."""


def command(made: Path, script: str, needs: tuple[str, ...] = (), cores: int = 1) -> Command:
    return Command(PreparationStep(made.name, made, ["sh", "-c", script], needs, cores))


def test_two_commands_run_at_the_same_time_and_the_rest_wait(tmp_path: Path) -> None:
    meet = "touch {own}; for i in $(seq 300); do test -e {other} && mkdir {made} && exit; sleep 0.1; done; exit 1"
    names = [tmp_path / name for name in ("one", "two")]
    tasks = [
        command(made, meet.format(own=made.with_suffix(".here"), other=other.with_suffix(".here"), made=made))
        for made, other in zip(names, reversed(names), strict=True)
    ]
    (tmp_path / "there").mkdir()
    tasks += [command(tmp_path / "three", f"mkdir {tmp_path / 'three'}"), command(tmp_path / "there", "exit 1")]
    events = Events()
    run_tasks(tasks, 2, events)
    assert events.seen[:2] == ["one begins", "two begins"]
    assert events.seen[2] in ("one ends", "two ends"), "two at a time"
    assert sorted(events.seen) == sorted(
        f"{name} {what}" for name in ("one", "two", "three") for what in ("begins", "ends")
    )


def test_a_task_begins_when_what_it_needs_is_done_and_one_of_all_cores_is_not_overtaken(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    order = ["first", "wide", "narrow", "last"]
    needs = {"wide": ("first", "there"), "last": ("narrow",)}
    tasks: list[Task] = [
        command(tmp_path / name, f"mkdir {tmp_path / name}", needs.get(name, ()), 3 if name == "wide" else 1)
        for name in order
    ]
    called = threading.Event()
    tasks += [command(tmp_path / "there", "exit 1"), Call("call", lambda show: called.set(), work=1)]
    events = Events()
    run_tasks(tasks[::-1][:2] + tasks[:4], 1, events)
    begun = [event.split()[0] for event in events.seen if event.endswith("begins")]
    assert begun == ["call", *order], "a call waits for no core"
    assert events.seen.index("first ends") < events.seen.index("wide begins")
    assert called.is_set()


def test_a_command_that_fails_ends_the_running_ones(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_CLEAN_UP_S", 2.0)  # the shell below waits for its child and has to be killed
    mark = tmp_path / "pid"
    slow = command(tmp_path / "slow", f"echo $$ > {mark}; sleep 60")
    failing = command(tmp_path / "failing", f"while ! test -s {mark}; do sleep 0.1; done; echo because; exit 3")
    with pytest.raises(StepFailed, match=r"failing: .* ended with status 3"):
        run_tasks([slow, failing], 2, Events())
    assert "because" in capfd.readouterr().out
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_the_failure_of_a_call_is_raised(tmp_path: Path) -> None:
    def fail(show: object) -> None:
        raise StepFailed("because")

    later = command(tmp_path / "later", "exit 1", needs=("call",))
    with pytest.raises(StepFailed, match="because"):
        run_tasks([Call("call", fail, work=1), later], 1, Events())


def test_a_failed_check_ends_the_running_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_CLEAN_UP_S", 2.0)  # a test in the background may not be interrupted
    mark = tmp_path / "pid"

    def check() -> None:
        if mark.exists() and mark.read_text():
            raise StepFailed("the services ended")

    with pytest.raises(StepFailed, match="the services ended"):
        run_tasks([command(tmp_path / "slow", f"echo $$ > {mark}; exec sleep 60")], 1, Events(), check)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


@pytest.mark.parametrize(
    ("log", "fraction"),
    [
        ("", None),
        ("picture features: 480 of 1920\n", 0.25 * 0.4),
        ("picture features: 1920 of 1920\nWarning: 3 of 4 pages\ntuning, loss 1.230: 90 of 360\n", 0.4 + 0.25 * 0.6),
        ("tuning, loss 1.230: 90 of 360\nsomething else\n", 0.4 + 0.25 * 0.6),
        ("another stage: 1 of 2\n", None),
    ],
)
def test_the_progress_of_a_command_is_in_its_log(tmp_path: Path, log: str, fraction: float | None) -> None:
    stages = (("picture features", 0.4), ("tuning", 0.6))
    step = PreparationStep("base", tmp_path / "base", ["true"], stages=stages)
    step.log.write_text(log)
    assert Command(step).fraction == (None if fraction is None else pytest.approx(fraction))
