"""Everything that is made before a service starts: data, base VLM, parts, and one reward model for each client.

Each step is a command of its own, run as its user would run it, and leaves a folder that is complete or absent; a step
whose folder is there is not run again. A client's training reads that client's folder only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from three_domains import report
from three_domains.stack import CLIENTS

_CLEAN_UP_S = 30.0
"""Seconds that an interrupted command has to clean up before it is killed."""
_LOOK_S = 0.2
_DUAL = "--backbone dual-encoder --lr 1e-3 --weight-decay 0.05 --mismatch 4"
_RECIPES = {
    "detail": f"{_DUAL} --set vision_layers=[-1,-2] --epochs 6",
    "medical": "--backbone vlm --set likelihood=0.3 --lr 2e-4 --epochs 2",
    "chart": f"{_DUAL} --set vision_layers=[8] --set image_size=168 --epochs 7",
}
"""How each client trains; what the clients share is the contract they serve."""
_LARGER_BASE = {"medical": "--backbone vlm --lora-rank 16 --set likelihood=0.3 --lr 5e-4 --epochs 1"}
"""The same on the base model of the preset ``small``, which is seven times as large."""


class StepFailed(RuntimeError):
    """A preparing command failed; it has printed why."""


@dataclass(frozen=True)
class Step:
    title: str
    makes: Path
    command: Sequence[str]

    @property
    def log(self) -> Path:
        """What the command says where it does not have the terminal to itself."""
        return self.makes.with_name(f"{self.makes.name}.log")

    def run(self) -> bool:
        """Run unless its folder is there; returns whether it ran.

        Raises:
            StepFailed: the command failed.
        """
        if self.makes.exists():
            return False
        self.makes.parent.mkdir(parents=True, exist_ok=True)
        status = run(self.command)
        if status:
            raise self.failure(status)
        return True

    def failure(self, status: int) -> StepFailed:
        command = " ".join(self.command)
        return StepFailed(f"{self.title}: `{command}` ended with status {status}; run it alone to see why")


def claim(state: Path, preset: str, seed: int) -> None:
    """Note in ``state`` what it is made for: what is found there is not made again.

    Raises:
        StepFailed: it was made for another preset or seed.
    """
    note, wanted = state / "made-for.json", {"preset": preset, "seed": seed}
    if not note.exists():
        report.write(note, wanted)
    found = json.loads(note.read_text())
    if found != wanted:
        was = ", ".join(f"{name} {value}" for name, value in found.items())
        raise StepFailed(f"{state} was made for {was}: give another --state, or remove that folder to make it anew")


def run(command: Sequence[str]) -> int:
    """Run a command in a process group of its own and return its status. When we are interrupted, so is the command,
    once, and it gets the time to clean up: a terminal would interrupt it beside us and leave it none.
    """
    process = subprocess.Popen(command, process_group=0)
    try:
        return process.wait()
    except BaseException:
        _end([process])
        raise


def run_beside(
    steps: Sequence[Step], at_once: int, begun: Callable[[Step], None], done: Callable[[Step], None]
) -> None:
    """Run steps that need nothing of each other, ``at_once`` at a time, with what they say in their logs; ``begun`` and
    ``done`` are told of each. A step whose folder is there is left out. Interrupted as ``run`` is.

    Raises:
        StepFailed: a command failed; its log has been printed, and the others were interrupted.
    """
    waiting = [step for step in steps if not step.makes.exists()]
    running: dict[subprocess.Popen[bytes], Step] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                step = waiting.pop(0)
                step.makes.parent.mkdir(parents=True, exist_ok=True)
                with step.log.open("wb") as log:
                    running[subprocess.Popen(step.command, process_group=0, stdout=log, stderr=log)] = step
                begun(step)
            time.sleep(_LOOK_S)
            for process in [process for process in running if process.poll() is not None]:
                step = running.pop(process)
                if process.returncode:
                    print(step.log.read_text(errors="replace"))
                    raise step.failure(process.returncode)
                done(step)
    finally:
        _end(list(running))


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt commands, and kill what has not cleaned up in time."""
    for process in processes:
        _signal(process, signal.SIGINT)
    deadline = time.monotonic() + _CLEAN_UP_S
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def steps(state: Path, preset: str, seed: int) -> list[Step]:
    """What to make below ``state`` before the reward models, in order."""
    data, base, parts = state / "data", state / "base", state / "parts"
    python = [sys.executable, "-m"]
    seeded = ["--seed", str(seed)]
    return [
        Step("real pictures and questions", data, [*python, "three_domains.build", "--out", str(data), *seeded]),
        Step(
            "base VLM",
            base,
            [*python, "three_domains.base_vlm", "--data", str(data), "--out", str(base), "--preset", preset, *seeded],
        ),
        Step(
            "pretrained parts for the clients", parts, [*python, "three_domains.export_encoders", "--out", str(parts)]
        ),
    ]


def reward_models(state: Path, preset: str, seed: int, threads: int) -> list[Step]:
    """What each client trains, from its own folder and ``threads`` threads; the one that takes longest first."""
    recipes = _RECIPES | (_LARGER_BASE if preset == "small" else {})
    made = []
    for client in sorted(CLIENTS, key=lambda name: name != "medical"):
        model = state / "clients" / client / "model"
        prefs = state / "data" / "clients" / client / "prefs.jsonl"
        command = [
            *_mor_reward("train", "--data", str(prefs), "--out", str(model), "--name", client, "--seed", str(seed)),
            *recipes[client].split(),
            *_checkpoints(client, state / "base", state / "parts"),
            *("--threads", str(threads)),
            *(["--resume"] if model.with_name("model.training").exists() else []),
        ]
        made.append(Step(f"{client}: reward model", model, command))
    return made


def pooled(state: Path, seed: int) -> Step:
    """The supervised reference, which no client would allow."""
    data, base, made = state / "data", state / "base", state / "pooled"
    command = [
        sys.executable,
        "-m",
        "three_domains.pooled",
        "--data",
        str(data),
        "--base",
        str(base),
        "--out",
        str(made),
    ]
    return Step("supervised tuning on pooled answers", made, [*command, "--seed", str(seed)])


def _checkpoints(client: str, base: Path, parts: Path) -> list[str]:
    """What a client's reward model is made of."""
    if client == "medical":
        return ["--model", str(base)]
    tower = {"detail": "efficientnet-lite2", "chart": "dinov2-small"}[client]
    return ["--vision", str(parts / tower), "--text", str(parts / "minilm")]


def _mor_reward(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("mor-reward")), *arguments]
