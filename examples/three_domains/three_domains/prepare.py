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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from three_domains import report
from three_domains.stack import CLIENTS

_CLEAN_UP_S = 30.0
"""Seconds that an interrupted command has to clean up before it is killed."""
_THREADS = ("--threads", "2")
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
            raise StepFailed(
                f"{self.title}: `{' '.join(self.command)}` ended with status {status}; run it alone to see why"
            )
        return True


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
        _signal(process, signal.SIGINT)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_CLEAN_UP_S)
        finally:
            _signal(process, signal.SIGKILL)
            process.wait()
        raise


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def steps(state: Path, preset: str, seed: int) -> list[Step]:
    """What to make below ``state``, in order."""
    data, base, parts = state / "data", state / "base", state / "parts"
    python = [sys.executable, "-m"]
    seeded = ["--seed", str(seed)]
    made = [
        Step("real pictures and questions", data, [*python, "three_domains.build", "--out", str(data), *seeded]),
        Step(
            "base VLM",
            base,
            [*python, "three_domains.base_vlm", "--data", str(data), "--out", str(base), "--preset", preset, *seeded],
        ),
        Step("pretrained parts for the clients", parts, [*python, "three_domains.parts", "--out", str(parts)]),
    ]
    recipes = _RECIPES | (_LARGER_BASE if preset == "small" else {})
    for client in CLIENTS:
        model = state / "clients" / client / "model"
        prefs = data / "clients" / client / "prefs.jsonl"
        command = [
            *_mor_reward("train", "--data", str(prefs), "--out", str(model), "--name", client, *seeded),
            *recipes[client].split(),
            *_checkpoints(client, base, parts),
            *_THREADS,
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
