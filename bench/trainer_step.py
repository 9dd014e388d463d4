"""Comparison of the trainer's step with TRL and verl: time, and memory above weights, gradients and optimiser.

``python bench/trainer_step.py`` writes ``bench/results/trainer-step-SHAPE.json``. All take the same groups: model,
pictures, prompts, responses, type and threads are the same, each picture is new to its step, KL penalty on, image
encoder frozen; generation is omitted, the peers receive its completions. Each round is a process for each side, in
turns. Each peer is installed with a pinned version in its own environment below ``--state``, which inherits this one.

For time MoR packs up to ``micro_batch_tokens`` and a peer takes a group at a time; for memory all take a group at a
time.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import trl_baseline
import verl_baseline
import vlm
from machine import CLOCKS, record

MOR = "mor"
PEERS = {"trl": trl_baseline.TRL, "verl": verl_baseline.VERSIONS}
"""Versions of the peers."""
WARM_UP = 1
"""Steps of warm-up of each process, which are not measured."""


# --- all sides ----------------------------------------------------------------------------------------------------


class Meter:
    """Meter of a step: seconds, and peak memory above that held between steps."""

    def __init__(self, device: str, gradients: int, clock: str) -> None:
        self._clock = CLOCKS[clock]
        self.steps: list[dict[str, float]] = []
        self._cuda = device == "cuda"
        self._gradients = gradients

    def begin(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._held = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self._held = _status("VmRSS")
        self._started = self._clock()

    def end(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        seconds = self._clock() - self._started
        peak = torch.cuda.max_memory_allocated() if self._cuda else _status("VmHWM")
        self.steps.append({"seconds": seconds, "activation_gb": (peak - self._held - self._gradients) / 1e9})


def _status(field: str) -> int:
    """Read a size in ``/proc/self/status``, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def take_steps_of_mor(options: argparse.Namespace) -> list[dict[str, float]]:
    from mor_trainer.model import loading
    from mor_trainer.model.policy import Policy
    from mor_trainer.ranks import Ranks
    from mor_trainer.update.step_timer import StepTimer
    from mor_trainer.update.updater import Updater

    shape = vlm.SHAPES[options.shape]
    alone = options.prompt + options.size * (options.response - 1)
    spec = vlm.spec_of(
        micro_batch_tokens=alone if options.memory else max(alone, options.budget),
        sampling={"max_tokens": options.response},
        gradient_checkpointing=options.recompute,
    )
    autocast = loading.autocast_dtype("auto", options.device)
    ranks = Ranks(torch.device(options.device))
    policy = Policy(*loading.load(options.model), spec, ranks=ranks, autocast=autocast)
    assert policy.shares_prompts
    updater = Updater(policy, spec)
    meter = Meter(options.device, sum(p.nbytes for p in policy.trainable.values()), options.clock)
    for step in range(WARM_UP + options.steps):
        meter.begin()
        groups = vlm.groups(
            policy,
            shape,
            prompt=options.prompt,
            size=options.size,
            response=options.response,
            count=options.groups,
            first=step * options.groups,
        )
        updater.step(groups, step + 1, StepTimer())
        meter.end()
    return meter.steps


def take_steps_of_trl(options: argparse.Namespace) -> list[dict[str, float]]:
    from datasets import Dataset
    from PIL import Image
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    shape = vlm.SHAPES[options.shape]
    total = WARM_UP + options.steps
    model, processor = trl_baseline.model_of(options)
    rows: dict[str, list[Any]] = {"prompt": [], "image": []}
    for seed in range(total * options.groups):
        messages, images = vlm.question(shape, options.prompt, seed)
        rows["prompt"].append([{"role": "user", "content": messages[0].text}])
        rows["image"].append(Image.open(io.BytesIO(next(iter(images.values())))).convert("RGB"))
    given = [vlm.completions(options.size, options.response, seed) for seed in range(total * options.groups)]
    meter = Meter(options.device, sum(p.nbytes for p in model.parameters() if p.requires_grad), options.clock)

    class Replayed(GRPOTrainer):  # type: ignore[misc]
        """TRL's trainer with given instead of generated completions."""

        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
            assert {len(ids) for ids in prompt_ids} == {options.prompt}
            first = self.state.global_step * options.groups
            return [list(ids) for group in given[first : first + options.groups] for ids in group], None

    class Timed(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            meter.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.end()

    config = trl_baseline.config(options, total, options.device, gradient_checkpointing=options.recompute)
    trainer = Replayed(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict(rows),
        reward_funcs=lambda completions, **_: [float(index % 7) for index in range(len(completions))],
        processing_class=processor,
        callbacks=[Timed()],
    )
    trainer.train()
    return meter.steps


def take_steps_of_verl(options: argparse.Namespace) -> list[dict[str, float]]:
    total = WARM_UP + options.steps
    trainer = verl_baseline.Trainer(options, total)
    meter = Meter(options.device, trainer.gradient_bytes, options.clock)
    for step in range(total):
        meter.begin()
        trainer.step(step * options.groups)
        meter.end()
    return meter.steps


TAKE_STEPS = {MOR: take_steps_of_mor, "trl": take_steps_of_trl, "verl": take_steps_of_verl}


# --- in turns -----------------------------------------------------------------------------------------------------


def run(python: Path, side: str, options: argparse.Namespace, *, memory: bool) -> list[dict[str, float]]:
    """Run one side in its own process; return its measured steps."""
    command = [str(python), __file__, "--side", side, *(["--memory"] if memory else [])]
    for name in (
        "shape",
        "device",
        "prompt",
        "size",
        "response",
        "groups",
        "budget",
        "threads",
        "state",
        "model",
        "clock",
    ):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--steps", "1" if memory else str(options.steps), *(["--recompute"] if options.recompute else [])]
    quick_release = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"} if memory else {}
    threads = {"OMP_NUM_THREADS": str(options.threads), "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(
        command, env={**os.environ, **threads, **quick_release}, stdout=subprocess.PIPE, check=True, timeout=3600
    )
    return list(json.loads(done.stdout.splitlines()[-1]))[WARM_UP:]


def compare(options: argparse.Namespace) -> dict[str, Any]:
    environments = {"trl": trl_baseline.environment, "verl": verl_baseline.environment}
    pythons = {MOR: Path(sys.executable), **{peer: environments[peer](options.state) for peer in options.peers}}
    times: dict[str, list[float]] = {side: [] for side in pythons}
    for _ in range(options.rounds):
        for side, python in pythons.items():
            times[side] += [step["seconds"] for step in run(python, side, options, memory=False)]
            print(side, times[side], flush=True)
    memory = {side: run(python, side, options, memory=True)[0]["activation_gb"] for side, python in pythons.items()}
    ratios = {
        peer: [theirs / ours for ours, theirs in zip(times[MOR], times[peer], strict=True)] for peer in options.peers
    }
    return {
        "seconds": {side: statistics.median(found) for side, found in times.items()},
        "all_seconds": times,
        "speedup": {peer: statistics.median(found) for peer, found in ratios.items()},
        "speedups": ratios,
        "activation_gb": memory,
        "activation_share": {peer: memory[MOR] / memory[peer] for peer in options.peers},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(vlm.SHAPES), default="smollm2-135m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--prompts", type=int, nargs="+", default=[256, 128, 512], help="all prompt lengths to compare")
    parser.add_argument("--size", type=int, default=8, help="responses to a prompt")
    parser.add_argument("--response", type=int, default=16, help="tokens of a response")
    parser.add_argument("--groups", type=int, default=4, help="prompts in a step")
    parser.add_argument("--budget", type=int, default=4096, help="MoR's micro_batch_tokens")
    parser.add_argument("--steps", type=int, default=1, help="measured steps of each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing on all sides")
    parser.add_argument("--peers", choices=tuple(PEERS), nargs="+", help="default: TRL, and on CPUs verl")
    parser.add_argument("--state", type=Path, default=Path(".mor/bench/trl"), help="environments and model")
    parser.add_argument("--side", choices=tuple(TAKE_STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        print("\n" + json.dumps(TAKE_STEPS[options.side](options)))
        return
    options.peers = options.peers or (list(PEERS) if options.device == "cpu" else ["trl"])
    if "verl" in options.peers and options.device != "cpu":
        parser.error("got --peers verl with --device cuda; the comparison with verl is for CPUs: give --peers trl")
    options.state = options.state.resolve()
    options.model = str(options.state / options.shape)
    vlm.save(vlm.SHAPES[options.shape], options.model, options.device)
    name = f"trainer-step-{options.shape}" + ("" if options.device == "cpu" else f"-{options.device}")
    cases = []
    for prompt in options.prompts:
        options.prompt = prompt
        cases.append({"prompt": prompt, **compare(options)})
        print(cases[-1], flush=True)
        kept = ("shape", "device", "size", "response", "groups", "budget", "rounds", "threads", "clock", "recompute")
        peers = {peer: PEERS[peer] for peer in options.peers}
        record(name, {**{key: getattr(options, key) for key in kept}, "peers": peers, "cases": cases})


if __name__ == "__main__":
    main()
