"""Preparation steps of the demonstration: data, base VLM, encoders, and one reward model for each client.

Each step is a command that users can run themselves. It leaves a folder that is complete or absent; a step whose folder
exists is skipped. A client's training reads only that client's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from three_domains import report
from three_domains.stack import CLIENTS

_CLEAN_UP_S = 30.0
"""Seconds for an interrupted command to clean up before it is killed; removing a half-written folder takes some."""
_BACKBONES = {
    "detail": "--backbone dual-encoder --set vision_layers=[-1,-2]",
    "medical": "--backbone vlm --set likelihood=0.3",
    "chart": "--backbone dual-encoder --set vision_layers=[8] --set image_size=168",
}
"""Backbone of each client; the clients share only the contract that they serve."""
_DUAL = "--lr 1e-3 --weight-decay 0.05 --mismatch 4"
_RECIPES = {"detail": f"{_DUAL} --epochs 6", "medical": "--lr 2e-4 --epochs 2", "chart": f"{_DUAL} --epochs 7"}
"""Training of each client without differential privacy, which has a recipe of its own."""
_LARGER_BASE = {"medical": "--lora-rank 16 --lr 5e-4 --epochs 1"}
"""Training on the base model of the preset ``small``, which is seven times as large."""


_WORK = {"medical": 120, "detail": 100, "chart": 80}


class StepFailed(RuntimeError):
    """A preparation command failed and has printed the reason."""


@dataclass(frozen=True)
class PreparationStep:
    """Command that creates one folder."""

    title: str
    makes: Path
    command: Sequence[str]
    needs: tuple[str, ...] = ()
    """Titles of the steps whose folders it reads."""
    cores: int = 1
    """Cores that it keeps busy; 0 if it mostly waits for downloads."""
    work: float = 100.0
    """Work relative to other steps: core seconds, measured once. Only the ratios count: the time left follows from the
    steps done on this machine."""
    stages: tuple[tuple[str, float], ...] = ()
    """Stages by their names in the command's lines of progress, with their parts of the work."""

    @property
    def log(self) -> Path:
        """File for the command's output."""
        return self.makes.with_name(f"{self.makes.name}.log")

    def run(self) -> bool:
        """Run the command, with its output shown, unless its folder exists; return whether it ran.

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
        return StepFailed(f"{self.title}: `{command}` ended with status {status}; run it alone to see the reason")


def claim(state: Path, preset: str, seed: int, epsilon: float | None = None) -> None:
    """Record preset, seed and the clients' ε in ``state``, because existing folders are reused.

    Raises:
        StepFailed: ``state`` was created for another preset, seed or ε.
    """
    private = {} if epsilon is None else {"epsilon": epsilon}
    record, expected = state / "made-for.json", {"preset": preset, "seed": seed, **private}
    if not record.exists():
        report.write(record, expected)
    found = json.loads(record.read_text())
    if found != expected:
        was = ", ".join(f"{name} {value}" for name, value in found.items())
        raise StepFailed(f"{state} was made for {was}: give another --state, or remove that folder to create it again")


def run(command: Sequence[str]) -> int:
    """Run a command in its own process group and return its status.

    On an interrupt, interrupt the command once and let it clean up; in this process's group, the terminal would
    interrupt it directly, a second time.
    """
    process = subprocess.Popen(command, process_group=0)
    try:
        return process.wait()
    except BaseException:
        end([process])
        raise


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt commands, and kill those that do not end in time."""
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


DATA, BASE, PARTS = "real pictures and questions", "base VLM", "pretrained encoders for the clients"
"""Titles of the steps before the reward models."""
TRAINING_STAGES = (("encoding", 0.4), ("training", 0.6))
"""Stages of a reward model's training."""


def steps(state: Path, preset: str, seed: int) -> list[PreparationStep]:
    """List the steps before the reward models, in order. Each can use two cores, or waits."""
    data, base, parts = state / "data", state / "base", state / "parts"
    python = [sys.executable, "-m"]
    seeded = ["--seed", str(seed)]
    return [
        PreparationStep(
            DATA,
            data,
            [*python, "three_domains.build", "--out", str(data), *seeded],
            cores=2,
            work=90,
            stages=(("pictures", 1.0),),
        ),
        PreparationStep(
            BASE,
            base,
            [*python, "three_domains.base_vlm", "--data", str(data), "--out", str(base), "--preset", preset, *seeded],
            needs=(DATA,),
            cores=2,
            work=300,
            stages=(("picture features", 0.3), ("tuning", 0.7)),
        ),
        PreparationStep(
            PARTS, parts, [*python, "three_domains.export_encoders", "--out", str(parts)], cores=0, work=10
        ),
    ]


def start_title(client: str) -> str:
    """Return the title of the step that trains the public start of a client's private training."""
    return f"{client}: public start"


def model_title(client: str) -> str:
    """Return the title of the step that trains a client's reward model."""
    return f"{client}: reward model"


def reward_models(
    state: Path,
    preset: str,
    seed: int,
    threads: int,
    *,
    epsilon: float | None = None,
    starts: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[PreparationStep]:
    """List the training steps of the clients, with ``threads`` threads each, the longest first.

    Two with one thread each take less time than one after the other with two threads.

    ``epsilon``: that of differential privacy; ``None`` trains without. ``starts``: client -> options of the model of
    public data that its training goes on from, in place of a backbone and its checkpoints.
    """
    recipes = _RECIPES | (_LARGER_BASE if preset == "small" else {})
    made = []
    for client in sorted(CLIENTS, key=lambda name: name != "medical"):
        model = state / "clients" / client / "model"
        prefs = state / "data" / "clients" / client / "prefs.jsonl"
        command = [
            *_mor_reward("train", "--data", str(prefs), "--out", str(model), "--name", client, "--seed", str(seed)),
            *(
                starts.get(client)
                or (*_BACKBONES[client].split(), *_checkpoints(client, state / "base", state / "parts"))
            ),
            *(recipes[client].split() if epsilon is None else ["--dp-epsilon", f"{epsilon:g}"]),
            *("--threads", str(threads)),
            *resumption(model),
        ]
        needs = (BASE,) if client == "medical" else (DATA, PARTS)
        start = (start_title(client),) if client in starts else ()
        made.append(
            PreparationStep(
                model_title(client), model, command, (*needs, *start), threads, _WORK[client], TRAINING_STAGES
            )
        )
    return made


def pooled(state: Path, seed: int) -> PreparationStep:
    """Return the step of the supervised reference, which privacy forbids in practice."""
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
    stages = (("picture features", 0.4), ("tuning", 0.6))
    return PreparationStep(
        "supervised tuning on pooled answers", made, [*command, "--seed", str(seed)], (BASE,), 2, 300, stages
    )


def resumption(model: Path) -> list[str]:
    """Return the option that continues the interrupted training of a model, if there is its checkpoint."""
    return ["--resume"] if (model.with_name(f"{model.name}.training") / "checkpoint.pt").exists() else []


def _checkpoints(client: str, base: Path, parts: Path) -> list[str]:
    """Return the options for the checkpoints of a client's reward model."""
    if client == "medical":
        return ["--model", str(base)]
    encoder = {"detail": "efficientnet-lite2", "chart": "dinov2-small"}[client]
    return ["--vision", str(parts / encoder), "--text", str(parts / "minilm")]


def _mor_reward(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("mor-reward")), *arguments]
