"""Estimates of the time left: from this machine's own tasks, and none before there is something to go by."""

from __future__ import annotations

import io
import re

import pytest
from mor_core.terminal import TerminalConsole
from three_domains import time_left
from three_domains.tasks import Task
from three_domains.time_left import TimeLeft, TimeLeftDisplay


class Planned(Task):
    """Task whose progress the test sets."""

    fraction: float | None = None

    def begin(self) -> None:
        """Do nothing."""

    def finished(self) -> bool:
        return False


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def planned(title: str, work: float, cores: int = 1) -> Planned:
    return Planned(title, work, (), cores)


@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_only_ratios_of_the_work_count(unit: float) -> None:
    clock = Clock()
    first, second, third = (planned(name, work * unit, 2) for name, work in (("a", 20), ("b", 60), ("c", 20)))
    left = TimeLeft([first, second, third], 2, clock)
    left.begun(first)
    assert left.of_all() is None, "nothing has been measured"
    assert left.of(first) is None
    clock.now += 10
    left.ended(first)
    left.begun(second)
    assert left.of_all() == pytest.approx(40), "a fifth of the work took 10 s"
    assert left.of(second) == pytest.approx(30)
    clock.now += 15
    assert left.of(second) == pytest.approx(15)


def test_a_task_s_own_progress_counts_more_than_its_share() -> None:
    clock = Clock()
    task, rest = planned("a", 50, 2), planned("b", 50, 2)
    left = TimeLeft([task, rest], 2, clock)
    left.begun(task)
    clock.now += 30
    task.fraction = 0.25
    left.look()
    assert left.of(task) == pytest.approx(90)
    assert left.of_all() == pytest.approx(90 + 120)
    clock.now += 10  # without another report, the estimate goes on from the last one
    left.look()
    assert left.of(task) == pytest.approx(80)


def test_no_running_task_outlasts_the_whole() -> None:
    clock = Clock()
    quick, slow = planned("a", 99, 2), planned("b", 1, 1)
    left = TimeLeft([quick, slow], 2, clock)
    left.begun(quick)
    clock.now += 10
    left.ended(quick)
    left.begun(slow)
    clock.now += 10
    slow.fraction = 0.1
    left.look()
    assert left.of_all() == left.of(slow) == pytest.approx(90)


def test_a_pipe_gets_lines_with_the_time_left() -> None:
    out = io.StringIO()
    clock = Clock()
    task, rest = planned("base", 25, 2), planned("align", 75, 2)
    estimate = TimeLeft([task, rest], 2, clock)
    with TimeLeftDisplay(TerminalConsole(file=out), estimate, "the table") as display:
        display.begun(task)
        clock.now += 60
        display.ended(task)
        display.begun(rest)
    assert re.findall(r"\S.*", out.getvalue()) == [
        "base: begins",
        "base: 60 s",
        "align: begins, about 3 min left",
    ]


def test_a_terminal_gets_a_bar_for_each_running_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_left, "_LOOK_S", 0.0)
    out = io.StringIO()
    task, rest = planned("base", 25, 2), planned("align", 75, 2)
    clock = Clock()
    estimate = TimeLeft([task, rest], 2, clock)
    with TimeLeftDisplay(TerminalConsole(file=out, force_terminal=True, width=100), estimate, "the table") as display:
        display.begun(task)
        clock.now += 60
        task.fraction, task.note = 0.5, "step [5] of 10"
        display.look()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).split("\r")[-1]
    assert re.search(r"until the table .*about 7 min left", last)
    assert re.search(r"base .*about 60 s left step \[5\] of 10", last)
