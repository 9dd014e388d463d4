"""Demonstration from the sources to the final table: ``python -m three_domains.demo --state DIR``.

It creates the data and the models, starts every service as a separate process, enrols the clients, fits the gate,
aligns the base VLM, and compares the aligned model with the base model on held-out pictures. Ctrl-C ends every process;
finished steps are kept and not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mor_core.terminal import TerminalConsole
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    track,
)

from three_domains import prepare, public_start, report, session, stack
from three_domains.prepare import PreparationStep, StepFailed
from three_domains.stack import Stack, StackError

RUN: dict[str, Any] = {
    "name": "three-domains",
    "objective": session.OBJECTIVE,
    "steps": 100,
    "groups_per_step": 16,
    "group_size": 8,
    "max_staleness": 1,
    "sampling": {"max_tokens": 24},
    "optimiser": {"lr": 1e-4},
    "algorithm": {"kl": {"beta": 0.05}},
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {"steps": 60, "groups_per_step": 8, "optimiser": {"lr": 1e-5}},
}
"""Differences of the presets: the larger model takes about six times as long for a group, and needs a lower rate: 4e-5
soon collapsed it to one answer per kind of question."""
_CORES = 2
"""Processor cores that the demonstration is tuned for."""
_PRINT_EVERY = 10
"""Steps between progress lines if the output is not a terminal."""

console = TerminalConsole()


class Demonstration:
    """Phases of the demonstration, in order, on one folder of state."""

    def __init__(
        self,
        state: Path,
        preset: str,
        seed: int,
        arm: str,
        overrides: dict[str, Any],
        *,
        epsilon: float | None = None,
    ) -> None:
        """``epsilon``: that of the clients' training with differential privacy; ``None`` trains without."""
        self.epsilon = epsilon
        self.state = state.resolve()
        self.preset = preset
        self.seed = seed
        self.arm = arm
        self.spec = {
            **RUN,
            **PRESETS[preset],
            "model": str(self.state / "base"),
            "prompts": str(self.state / "data/server/prompts.jsonl"),
            "seed": seed,
            "control_rewards": "shuffled" if arm == "shuffled" else "fused",
            **overrides,
        }
        self.seconds: dict[str, float] = {}

    def phase(self, title: str) -> _Phase:
        return _Phase(title, self.seconds)

    def make_parts(self) -> None:
        prepare.claim(self.state, self.preset, self.seed, self.epsilon)
        steps = prepare.steps(self.state, self.preset, self.seed)
        if self.epsilon is not None:
            steps += public_start.steps(self.state, self.seed, _CORES)
        for step in steps:
            if step.makes.exists():
                console.print(f"[dim]{step.title}: exists already[/dim]", markup=True)
                continue
            with self.phase(step.title):
                step.run()
        self._train_reward_models()

    def _train_reward_models(self) -> None:
        """Train the clients' reward models, two at a time with one thread each.

        This takes less time than one after the other with two threads. The model on the larger base takes as long as
        the others together.
        """
        at_once = 1 if self.preset == "small" else min(_CORES, os.cpu_count() or 1)
        clients = () if self.epsilon is None else public_start.OPTIONS
        trainings = prepare.reward_models(
            self.state,
            self.preset,
            self.seed,
            threads=_CORES // at_once,
            epsilon=self.epsilon,
            starts={client: public_start.train_options(self.state, client) for client in clients},
        )
        progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console)
        shown: dict[str, TaskID] = {}

        def begun(step: PreparationStep) -> None:
            shown[step.title] = progress.add_task(step.title, total=None)
            if not console.is_terminal:
                console.print(f"  {step.title}: log: {step.log}", soft_wrap=True, highlight=False)

        def done(step: PreparationStep) -> None:
            progress.stop_task(shown[step.title])
            console.print(step.log.read_text(errors="replace"), soft_wrap=True, highlight=False, markup=False)

        if all(step.makes.exists() for step in trainings):
            console.print("[dim]reward models of the clients: exists already[/dim]", markup=True)
            return
        with self.phase("reward models of the clients"), progress:
            prepare.run_beside(trainings, at_once, begun, done)

    def compare_pooled(self) -> Path:
        """Run the supervised arm: tune on the pooled chosen answers, then answer and grade like an aligned model."""
        pooled = prepare.pooled(self.state, self.seed)
        with self.phase(pooled.title):
            pooled.run()
        accuracy = {}
        for name, model in (("base", self.state / "base"), ("aligned", pooled.makes)):
            serving = stack.prepare(self.state, model)
            try:
                serving.start("redis", "rollout")
                list(serving.wait_until_ready(["rollout"]))
                accuracy[name] = self.grade(self.answers(serving, name))
            finally:
                serving.stop()
        path = self.state / "report.json"
        report.write(path, {"accuracy": accuracy})
        console.print(report.accuracy_table(accuracy))
        return path

    def start(self) -> Stack:
        """Start every service and wait until it is ready; if one fails, end all."""
        running = stack.prepare(self.state, self.state / "base")
        with self.phase("start the services"):
            try:
                running.start()
                for name in running.wait_until_ready():
                    console.print(f"  {name} is ready at {running.url(name)}")
                    if name == "control":
                        session.stop_earlier_runs(running)
            except BaseException:
                running.stop()
                raise
        page = f"open {running.dashboard_file} in a browser; it signs you in to {running.url('control')}"
        console.print(f"[bold]dashboard: {page}[/bold]", soft_wrap=True, highlight=False, markup=True)
        mor = Path(sys.executable).parent / "mor"
        hint = f"export MOR_CONFIG={running.command_settings}; {mor} run list"
        console.print(f"command: {hint}", soft_wrap=True, highlight=False)
        return running

    def align(self, running: Stack) -> Path:
        """Enrol, fit, run, and compare; return the path of the report."""
        with self.phase("enrol the clients and fit the gate"):
            session.enrol(running)
            fit = session.fit_gate(running, self.state / "data/server/anchors.jsonl")
        session.expect_base(running)
        answers = {"base": self.answers(running, "base")}
        with self.phase("align"):
            run = session.create_run(running, self.spec)
            snapshot = self.watch(running, run)
        answers["aligned"] = self.answers(running, "aligned")
        accuracy = {name: self.grade(file) for name, file in answers.items()}
        points = session.metrics(running, run)
        found = report.summarise(
            spec=self.spec,
            snapshot=snapshot,
            points=points,
            swaps=session.weight_swaps(running),
            fit=fit,
            accuracy=accuracy,
            seconds=self.seconds,
            state=self.state,
        )
        path = self.state / "report.json"
        report.write(path, found)
        report.show(console, found)
        return path

    def answers(self, running: Stack, name: str) -> Path:
        """Generate greedy answers to the gold questions by the engine's current policy; return their file."""
        questions = self.state / "data/gold/test.jsonl"
        file = self.state / f"answers-{name}.jsonl"
        with self.phase(f"answers of the {name} model to the test questions"):
            answers = session.answer(running, questions, self.spec["sampling"]["max_tokens"])
            total = len(questions.read_text().splitlines())
            rows = [
                {"id": row, "responses": [text]} for row, text in track(answers, "  generating", total, console=console)
            ]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    def grade(self, answers: Path) -> dict[str, Any]:
        """Grade answers per domain, in a process that neither router nor trainer calls."""
        out = answers.with_suffix(".graded.json")
        gold = self.state / "data/gold/test.jsonl"
        command = [
            sys.executable,
            "-m",
            "three_domains.grade",
            "--gold",
            str(gold),
            "--responses",
            str(answers),
            "--out",
        ]
        if prepare.run([*command, str(out)]):
            raise StepFailed(f"grading {answers} failed")
        return dict(json.loads(out.read_text())["domains"])

    def watch(self, running: Stack, run: str) -> dict[str, Any]:
        """Show the run's progress until it ends; return its last snapshot.

        Raises:
            StackError: see ``session.follow``.
        """
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        now: dict[str, Any] = {}
        printed = 0
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("waiting for the first step", total=self.spec["steps"])
            for now in session.follow(running, run):
                step = now["step"] or 0
                progress.update(task, completed=step, description=report.one_line(now))
                if not console.is_terminal and step >= printed + _PRINT_EVERY:
                    printed = step
                    console.print(f"  step {printed} of {self.spec['steps']}: {report.one_line(now)}")
        return now


class _Phase:
    """Context that announces a phase and records its duration."""

    def __init__(self, title: str, seconds: dict[str, float]) -> None:
        self._title, self._seconds = title, seconds

    def __enter__(self) -> None:
        console.print(f"[bold]{self._title}[/bold]", markup=True)
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._title] = time.monotonic() - self._start
        console.print(f"[dim]  {self._seconds[self._title]:.0f} s[/dim]", markup=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", type=Path, required=True, help="folder of all results")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="default", help="language model of the VLM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--arm",
        choices=["aligned", "shuffled", "supervised"],
        default="aligned",
        help="model to compare with the base: the aligned one, or a control (shuffled rewards; supervised tuning)",
    )
    parser.add_argument("--dp-epsilon", type=float, help="train the clients with differential privacy of this ε")
    parser.add_argument("--steps", type=int, help="number of training steps, instead of the preset's")
    parser.add_argument("--keep", action="store_true", help="start the services, enrol, fit, and leave them running")
    options = parser.parse_args()
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.default_int_handler)
    overrides = {"steps": options.steps} if options.steps else {}
    options.state.mkdir(parents=True, exist_ok=True)
    demonstration = Demonstration(
        options.state, options.preset, options.seed, options.arm, overrides, epsilon=options.dp_epsilon
    )
    running: Stack | None = None
    keep = False
    try:
        demonstration.make_parts()
        if options.arm == "supervised":
            print(demonstration.compare_pooled())
            return 0
        running = demonstration.start()
        if options.keep:
            session.enrol(running)
            session.fit_gate(running, demonstration.state / "data/server/anchors.jsonl")
            keep = True
            console.print("the stack is up; check it with `mor doctor`, with MOR_CONFIG as above")
            console.print(f"the operator's token is in {demonstration.state / 'operator.token'}")
            console.print("end it with `make down`")
        else:
            path = demonstration.align(running)
            print(path)
    except (StepFailed, StackError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True, markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; ending all processes")
        return 130
    finally:
        if running is not None and not keep:
            running.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
