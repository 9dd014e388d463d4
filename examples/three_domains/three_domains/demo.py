"""Demonstration from the sources to the final table: ``python -m three_domains.demo --state DIR``.

It starts every service as a separate process, run control with the dashboard first, and creates the data and the models
meanwhile; a service waits for the model that it needs. Then it enrols the clients, fits the gate, aligns the base VLM,
and compares the aligned model with the base model on held-out pictures. Ctrl-C and a closed terminal end every process,
a second Ctrl-C at once; finished steps are kept and not repeated.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from mor_core.terminal import TerminalConsole
from rich.markup import escape

from three_domains import prepare, public_start, report, session, stack
from three_domains.prepare import PreparationStep, StepFailed
from three_domains.stack import CLIENTS, Stack, StackError
from three_domains.tasks import Call, Command, Report, Task, run_tasks
from three_domains.time_left import TimeLeft, TimeLeftDisplay

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
_CONTROL, _ENGINE, _GATE = "run control", "rollout engine", "gate fitted to the clients"
"""Titles of tasks that others need."""

console = TerminalConsole()


class Demonstration:
    """Tasks of the demonstration on one folder of state."""

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
        """Durations of the finished tasks, by title."""
        self.fit: dict[str, Any] = {}
        """The router's report of the fit."""
        self.snapshot: dict[str, Any] = {}
        """Snapshot of the finished run."""

    def commands(self) -> list[Task]:
        """List the tasks that make data and models."""
        steps = prepare.steps(self.state, self.preset, self.seed)
        starts: list[PreparationStep] = []
        clients: Collection[str] = ()
        if self.epsilon is not None:
            starts, clients = public_start.steps(self.state, self.seed, 1), public_start.OPTIONS
        trainings = prepare.reward_models(
            self.state,
            self.preset,
            self.seed,
            # The model on the larger base takes as long as the others together.
            threads=_CORES if self.preset == "small" else 1,
            epsilon=self.epsilon,
            starts={client: public_start.train_options(self.state, client) for client in clients},
        )
        return [*map(Command, (*steps, *starts)), *(Command(step, _show_log) for step in trainings)]

    def services(self, running: Stack) -> list[Task]:
        """List the tasks that wait for the services, each from when what it serves exists, and enrol the clients."""

        def wait(name: str, then: Callable[[], None] = lambda: None) -> Callable[[Report], None]:
            def ready(show: Report) -> None:
                list(running.wait_until_ready([name]))
                then()

            return ready

        def tell(name: str) -> Callable[[], None]:
            def told() -> None:
                console.print(f"  {name} is ready at {running.url(name)}", highlight=False, soft_wrap=True)
                if name == "control":
                    show_addresses(running)

            return told

        def fit(show: Report) -> None:
            self.fit = session.fit_gate(running, self.state / "data/server/anchors.jsonl")

        enrolled = [f"{client}: reward service" for client in CLIENTS]
        return [
            Call(
                _CONTROL,
                wait("control", functools.partial(session.stop_earlier_runs, running)),
                work=3,
                done=tell("control"),
            ),
            Call("router", wait("router"), needs=(prepare.PARTS,), work=10, done=tell("router")),
            Call(_ENGINE, wait("rollout"), needs=(prepare.BASE,), work=30, done=tell("rollout")),
            *(
                Call(
                    title,
                    wait(client, functools.partial(session.enrol, running, client)),
                    needs=("router", prepare.model_title(client)),
                    work=10,
                    done=tell(client),
                )
                for client, title in zip(CLIENTS, enrolled, strict=True)
            ),
            Call(_GATE, fit, needs=(*enrolled, prepare.DATA), work=12),
        ]

    def comparison(self, running: Stack) -> list[Task]:
        """List the tasks that align the base model, with the answers of the model before and after."""

        def base_answers(show: Report) -> None:
            session.expect_base(running)
            self.answers(running, "base", show)

        def align(show: Report) -> None:
            self.snapshot = self.watch(running, session.create_run(running, self.spec), show)

        base, aligned = (f"answers of the {name} model to the test questions" for name in ("base", "aligned"))
        return [
            Call(base, base_answers, needs=(_CONTROL, _ENGINE, prepare.DATA), work=40),
            Call("align", align, needs=(_GATE, base), work=4 * self.spec["steps"], cores=_CORES),
            Call(aligned, lambda show: self.answers(running, "aligned", show), needs=("align",), work=40),
        ]

    def run(self, tasks: Sequence[Task], end: str, check: Callable[[], None] = lambda: None) -> None:
        """Run tasks; ``end`` names what they lead to."""
        for task in tasks:
            if task.exists:
                console.print(f"[dim]  {task.title}: exists already[/dim]", markup=True)
        cores = min(_CORES, os.cpu_count() or 1)
        estimate = TimeLeft(tasks, cores)
        with TimeLeftDisplay(console, estimate, end) as display:
            run_tasks(tasks, cores, display, check)
        self.seconds = estimate.seconds

    def compare_pooled(self) -> Path:
        """Run the supervised arm: tune on the pooled chosen answers, then answer and grade like an aligned model."""
        pooled = prepare.pooled(self.state, self.seed)
        steps = prepare.steps(self.state, self.preset, self.seed)
        self.run([Command(step) for step in (*steps, pooled)], "the tuned model")
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

    def compare(self, running: Stack) -> Path:
        """Grade the answers and show the report of the finished run; return its path."""
        accuracy = {name: self.grade(self.state / f"answers-{name}.jsonl") for name in ("base", "aligned")}
        found = report.summarise(
            spec=self.spec,
            snapshot=self.snapshot,
            points=session.metrics(running, self.snapshot["id"]),
            swaps=session.weight_swaps(running),
            fit=self.fit,
            accuracy=accuracy,
            seconds=self.seconds,
            state=self.state,
        )
        path = self.state / "report.json"
        report.write(path, found)
        report.show(console, found)
        return path

    def answers(self, running: Stack, name: str, show: Report = lambda fraction, note: None) -> Path:
        """Generate greedy answers to the gold questions by the engine's current policy; return their file."""
        questions = self.state / "data/gold/test.jsonl"
        file = self.state / f"answers-{name}.jsonl"
        total = len(questions.read_text().splitlines())
        rows = []
        for row, text in session.answer(running, questions, self.spec["sampling"]["max_tokens"]):
            rows.append({"id": row, "responses": [text]})
            show(len(rows) / total, "")
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

    def watch(self, running: Stack, run: str, show: Report) -> dict[str, Any]:
        """Show the run's progress until it ends; return its last snapshot.

        Raises:
            StackError: see ``session.follow``.
        """
        console.print(f"[bold]the run is live: {running.url('control')}/runs/{run}[/bold]", soft_wrap=True, markup=True)
        now: dict[str, Any] = {}
        for now in session.follow(running, run):
            step = now["step"] or 0
            show(step / self.spec["steps"], f"step {step} of {self.spec['steps']}, {report.one_line(now)}")
        return now


def show_addresses(running: Stack) -> None:
    """Print how to open the dashboard and how to use the command ``mor``."""
    page = f"open {running.dashboard_file} in a browser; it signs you in to {running.url('control')}"
    console.print(f"[bold]dashboard: {page}[/bold]", soft_wrap=True, highlight=False, markup=True)
    mor = Path(sys.executable).parent / "mor"
    hint = f"export MOR_CONFIG={running.command_settings}; {mor} run list"
    console.print(f"command: {hint}", soft_wrap=True, highlight=False)


def _show_log(step: PreparationStep) -> None:
    console.print(step.log.read_text(errors="replace"), soft_wrap=True, highlight=False, markup=False)


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
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps is {options.steps}; give at least 1")
    if options.dp_epsilon is not None and not 0 < options.dp_epsilon < math.inf:
        parser.error(f"--dp-epsilon is {options.dp_epsilon:g}; give a number above 0, such as 3")
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    overrides = {} if options.steps is None else {"steps": options.steps}
    demonstration = Demonstration(
        options.state, options.preset, options.seed, options.arm, overrides, epsilon=options.dp_epsilon
    )
    running: Stack | None = None
    keep = False
    try:
        demonstration.state.mkdir(parents=True, exist_ok=True)
        prepare.claim(demonstration.state, options.preset, options.seed, options.dp_epsilon)
        if options.arm == "supervised":
            print(demonstration.compare_pooled())
            return 0
        running = stack.prepare(demonstration.state, demonstration.state / "base")
        running.start()
        tasks = [*demonstration.services(running), *demonstration.commands()]
        if options.keep:
            demonstration.run(tasks, "all services run", running.check)
            keep = True
            console.print("the stack is up; check it with `mor doctor`, with MOR_CONFIG as above")
            console.print(f"the operator's token is in {demonstration.state / 'operator.token'}")
            console.print("end it with `make down`")
        else:
            demonstration.run([*tasks, *demonstration.comparison(running)], "the table", running.check)
            print(demonstration.compare(running))
    except (StepFailed, StackError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True, markup=True)
        return 1
    except OSError as error:
        cure = f"check the space and the rights of {demonstration.state}"
        console.print(f"error: {error}; {cure}", highlight=False, soft_wrap=True)
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
