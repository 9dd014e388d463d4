"""Guards of runs: what collapses is noticed, raises an alert and pauses the run; what is healthy and noisy goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mor_core.evaluated_steps import EvaluatedStep, best_step, steps_to_keep
from mor_core.guards import ALERT_OF_GUARD, GuardName, Guards
from mor_core.run_alerts import Alert
from mor_core.runs import Heartbeat, RunSpec, RunState
from mor_core.wire import EventRecord
from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.database import Database
from mor_trainer.control.dead_letter_store import DeadLetterStore
from mor_trainer.control.history import History
from mor_trainer.control.run_guards import RunGuards
from mor_trainer.control.run_store import RunStore
from mor_trainer.event_log import event_id
from pydantic import ValidationError

Figures = dict[str, Any]


class Control:
    """A run control without its network, and a run of it that a worker holds."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.database = Database.of_file(folder / "history.sqlite3")
        self.alerts = AlertStore(self.database, webhook=False)
        letters = DeadLetterStore(self.database, 10)
        self.runs = RunStore(self.database, self.alerts, letters, 60.0)
        self.history = History(self.database, self.runs, self.alerts, letters, samples_kept=1, events_kept=10_000)
        self.spec = RunSpec.model_validate({"name": "r", "model": "/m", "prompts": "/p", "steps": 1000, **changes})
        self.run = self.runs.create(self.spec)
        self.runs.claim("w")
        self._attempt, self._number = 1, 0

    def tell(self, kind: Any, step: int, data: Figures) -> None:
        """Take an event as the ingest does; each time with guards that know nothing but the history."""
        self._number += 1
        event = EventRecord(
            run=self.run, group_id=event_id(self._attempt, self._number), stamps={"trainer": float(step)},
            kind=kind, step=step, data=data,
        )  # fmt: skip
        if self.history.add(event):
            RunGuards(self.folder, self.database, self.runs, self.alerts).observe(event, self.spec)

    def steps(self, first: int, last: int, figures: Callable[[int], Figures]) -> None:
        for step in range(first, last + 1):
            self.tell("step", step, {"gate_version": 1, **figures(step)})

    def evaluate(self, step: int, reward: float, gate: int = 1) -> None:
        found = {"step": step, "reward": reward, "gate_version": gate, "prompts": 10, "answered": 10}
        self.tell("evaluation", step, found)

    def checkpoint(self, *steps: int) -> None:
        for step in steps:
            (self.folder / self.run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)

    def open_alerts(self) -> list[Alert]:
        return self.alerts.list(self.run, acknowledged=False, limit=100)

    def resume(self) -> None:
        """Resume the run as an operator and its worker do."""
        self.runs.beat(self.run, Heartbeat(attempt=1, state=RunState.paused))
        self.runs.request(self.run, "run")
        self.runs.beat(self.run, Heartbeat(attempt=1, state=RunState.running))


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Control]]:
    made: list[Control] = []

    def start(**changes: Any) -> Control:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Control(folder, **changes))
        return made[-1]

    yield start
    for control in made:
        control.database.close()


def healthy(step: int) -> Figures:
    """Figures like those of the demonstration: KL to 0.35, entropy to a third, with the noise of 128 responses."""
    noise = random.Random(step)
    done = min(1.0, step / 100)
    return {
        "reward_mean": 0.8 + 2.1 * done + noise.gauss(0, 0.3),
        "kl": max(0.0, 0.35 * done + noise.gauss(0, 0.05)) + (2.0 if step % 9 == 0 else 0),
        "entropy": 1.5 - done + noise.uniform(-0.2, 0.2),
        "identical_ratio": 0.2 + 0.2 * done + noise.uniform(0, 0.1) + (0.4 if step % 7 == 0 else 0),
        "single_token_ratio": 0.4 + noise.uniform(-0.1, 0.1),
        "zero_variance_ratio": min(1.0, 0.1 + 0.5 * done + noise.uniform(0, 0.4)),
        "truncation_ratio": noise.uniform(0, 0.4) + (0.6 if step % 8 == 0 else 0),
        "client_agreement": 0.4 + noise.uniform(-0.3, 0.3),
    }


COLLAPSES: dict[GuardName, Callable[[int], Figures]] = {
    "kl": lambda step: {"kl": 0.05 * (step - 20)},
    "entropy": lambda step: {"entropy": 0.01},
    "identical": lambda step: {"identical_ratio": 1.0},
    "divergence": lambda step: {"reward_mean": 4.0, "client_agreement": -0.2},
    "zero_variance": lambda step: {"zero_variance_ratio": 1.0},
    "truncation": lambda step: {"truncation_ratio": 0.9},
}
PAUSES = {"kl", "entropy", "identical"}


def test_a_healthy_noisy_run_is_left_alone(started: Callable[..., Control]) -> None:
    control = started(evaluation_prompts="/e")
    noise = random.Random(1)
    for step in range(0, 121, 20):
        control.evaluate(step, 0.5 + step / 100 + noise.gauss(0, 0.1))
        control.steps(step + 1, step + 20, healthy)
    assert not control.alerts.list(None, acknowledged=None, limit=100)
    assert control.runs.snapshot(control.run).desired == "run"


@pytest.mark.parametrize("guard", COLLAPSES)
def test_a_collapse_raises_an_alert_and_pauses_where_that_is_wanted(
    started: Callable[..., Control], guard: GuardName
) -> None:
    control = started(evaluation_prompts="/e")
    control.evaluate(0, 0.5)
    control.evaluate(20, 1.25)
    control.checkpoint(20, 40, 60)
    control.steps(1, 20, healthy)
    control.steps(21, 60, lambda step: {**healthy(step), **COLLAPSES[guard](step)})
    (alert,) = control.open_alerts()
    assert alert.name == ALERT_OF_GUARD[guard]
    assert f"guards.{guard}" in alert.reason
    assert "1.25 at step 20" in alert.reason
    assert "step 20, which is kept" in alert.reason
    assert f"mor run export {control.run} FOLDER --checkpoint 20" in alert.reason
    snapshot = control.runs.snapshot(control.run)
    if guard in PAUSES:
        assert snapshot.desired == "pause"
        assert snapshot.error == alert.reason or alert.count > 1
        assert f"mor run resume {control.run}" in (snapshot.error or "")
    else:
        assert (snapshot.desired, snapshot.error) == ("run", None)


@pytest.mark.parametrize("guard", COLLAPSES)
def test_each_guard_obeys_its_setting(started: Callable[..., Control], guard: GuardName) -> None:
    for action, alerts, desired in (("off", 0, "run"), ("alert", 1, "run"), ("pause", 1, "pause")):
        control = started(guards={guard: action, "window": 5})
        control.steps(1, 10, healthy)
        control.steps(11, 60, lambda step: {**healthy(step), **COLLAPSES[guard](step)})
        found = [alert for alert in control.open_alerts() if alert.name == ALERT_OF_GUARD[guard]]
        assert (len(found), control.runs.snapshot(control.run).desired) == (alerts, desired)


def test_a_guard_pauses_once_and_its_alert_ends_with_its_cause(started: Callable[..., Control]) -> None:
    control = started()
    control.steps(1, 20, healthy)
    control.steps(21, 35, lambda step: {**healthy(step), "identical_ratio": 1.0})
    assert control.runs.snapshot(control.run).desired == "pause"
    assert "has no finished evaluation" in (control.runs.snapshot(control.run).error or "")
    control.resume()
    assert control.runs.snapshot(control.run).error is None
    control.steps(36, 60, lambda step: {**healthy(step), "identical_ratio": 1.0})
    assert control.runs.snapshot(control.run).desired == "run"
    (alert,) = control.open_alerts()
    assert 2 <= alert.count <= 4, "once in a window"
    control.steps(61, 85, healthy)
    assert not control.open_alerts()


def test_a_run_that_was_certain_or_terse_from_the_start_has_not_collapsed(started: Callable[..., Control]) -> None:
    control = started()
    terse = {"entropy": 0.02, "identical_ratio": 0.95, "single_token_ratio": 1.0}
    control.steps(1, 60, lambda step: {**healthy(step), **terse})
    assert not control.open_alerts()


def test_right_answers_of_one_word_are_no_collapse_while_they_differ(started: Callable[..., Control]) -> None:
    """As where a policy unlearns evasions, and the right answer is the name of a card."""
    control = started()
    control.steps(1, 20, healthy)
    control.steps(21, 60, lambda step: {**healthy(step), "single_token_ratio": 0.97, "identical_ratio": 0.3})
    assert not control.open_alerts()
    control.steps(61, 80, lambda step: {**healthy(step), "single_token_ratio": 0.97, "identical_ratio": 0.6})
    [alert] = control.open_alerts()
    assert alert.name == "identical_responses"
    assert "97% (at the beginning" in alert.reason and "one text is 60% of them" in alert.reason


def test_a_collapse_within_the_first_window_is_found(started: Callable[..., Control]) -> None:
    control = started()
    control.steps(1, 2, healthy)
    control.steps(3, 15, lambda step: {**healthy(step), "identical_ratio": 1.0, "entropy": 0.001})
    assert {alert.name for alert in control.open_alerts()} == {"identical_responses", "entropy_collapse"}


def test_a_falling_evaluation_counts_by_one_gate_version_only(started: Callable[..., Control]) -> None:
    def rewards(step: int) -> Figures:
        return {"reward_mean": step / 20}

    falling, refitted = started(), started()
    for control, last in ((falling, 1), (refitted, 2)):
        for step, reward in ((20, 2.0), (40, 1.5), (60, 1.0)):
            control.steps(step - 19, step, rewards)
            control.evaluate(step, reward, last if step > 20 else 1)
        control.steps(61, 70, rewards)
    (alert,) = falling.open_alerts()
    assert alert.name == "reward_diverges"
    assert "from 2.00 to 1.50 and 1.00" in alert.reason
    assert not refitted.open_alerts(), "rewards of two gate versions are not comparable"


def test_a_run_that_ended_is_not_paused(started: Callable[..., Control]) -> None:
    control = started()
    control.steps(1, 20, healthy)
    control.runs.beat(control.run, Heartbeat(attempt=1, state=RunState.finished, final="/f"))
    control.steps(21, 40, lambda step: {**healthy(step), "kl": 9.0})
    snapshot = control.runs.snapshot(control.run)
    assert (snapshot.state, snapshot.desired, snapshot.error) == (RunState.finished, "run", None)
    assert [alert.name for alert in control.open_alerts()] == ["kl_over_bound"]


def test_metrics_that_a_worker_does_not_report_decide_nothing(started: Callable[..., Control]) -> None:
    control = started()
    control.steps(1, 40, lambda step: {"reward_mean": 1.0})
    assert not control.open_alerts()


def test_bounds_are_typed_and_unknown_guards_are_refused() -> None:
    guards = Guards.model_validate({"kl": "off", "kl_nats": 2.5})
    assert (guards.action("kl"), guards.kl_nats) == ("off", 2.5)
    for wrong in ({"kl": "stop"}, {"kl_nats": 0}, {"window": 0}, {"identical_share": 1.5}, {"repetition": "pause"}):
        with pytest.raises(ValidationError):
            Guards.model_validate(wrong)


def test_a_run_without_evaluation_is_told_so(started: Callable[..., Control]) -> None:
    without, with_one = started(), started(evaluation_prompts="/e")
    (warning,) = without.runs.snapshot(without.run).warnings
    assert "evaluation_prompts" in warning
    assert with_one.runs.snapshot(with_one.run).warnings == ()


@given(
    st.lists(st.integers(1, 40), min_size=1, unique=True),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 40), st.integers(-9, 9), st.integers(1, 3)), unique_by=lambda one: one[0]),
    st.none() | st.integers(0, 40),
)
def test_the_checkpoint_of_the_best_evaluation_is_never_deleted(
    checkpoints: list[int], newest: int, results: list[tuple[int, int, int]], pending: int | None
) -> None:
    evaluated = [EvaluatedStep(step=step, reward=reward, gate_version=gate) for step, reward, gate in results]
    kept = steps_to_keep(checkpoints, newest, evaluated, pending)
    assert {*sorted(checkpoints)[-newest:]} <= set(kept) <= set(checkpoints)
    assert len(kept) <= newest + 3, "the disk does not fill"
    best = best_step(evaluated)
    for step in [one for one in (best.step if best else None, pending) if one is not None]:
        older = [one for one in checkpoints if one <= step]
        assert not older or max(older) in kept


def test_an_evaluation_of_a_few_prompts_is_no_result() -> None:
    summary = {"step": 20, "reward": 9.0, "gate_version": 1, "prompts": 100, "answered": 40}
    assert EvaluatedStep.of(summary) is None
    assert EvaluatedStep.of({**summary, "answered": 95}) == EvaluatedStep(step=20, reward=9.0, gate_version=1)
    assert EvaluatedStep.of({"step": 20, "reward": None}) is None
