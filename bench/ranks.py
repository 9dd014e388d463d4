"""Comparison of two ranks of one thread with one process of two threads: seconds per step, and equality of results.

``python bench/ranks.py`` writes ``bench/results/ranks-SHAPE.json``. Both take the same steps with the trainer's own
learner: updates over shared prompts with a KL penalty, image encoder frozen, each picture new to its step; responses
differ in length by up to three tokens, and the loss is DAPO's, which is not zero by construction. On one machine the
ranks share its cores, so this shows the cost and the exactness of dividing a run, not its scaling.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import vlm
from machine import end_children_on_sigterm, record
from mor_core.prompt_index import open_prompts
from mor_core.runs import RunSpec
from mor_trainer.config import WorkerSettings
from mor_trainer.model.micro_batches import TrainingGroup
from mor_trainer.prompts.source_prompts import SourcePrompts
from mor_trainer.ranks import Ranks
from mor_trainer.update.learner import Learner, follow_leader
from safetensors.torch import load_file, save_file

SIDES = {"one": (1, 2), "two": (2, 1)}
"""Number of ranks and threads of each."""
WARM_UP = 1
"""Steps of warm-up of each process, which are not measured."""


def spec_of(options: argparse.Namespace) -> RunSpec:
    return vlm.spec_of(
        model=str(options.state / options.shape),
        prompts=str(options.state / "prompts.jsonl"),
        groups_per_step=options.groups,
        group_size=options.size,
        sampling={"max_tokens": options.response},
        micro_batch_tokens=options.budget,
        tuning={"kind": options.tuning},
        algorithm={"loss": {"kind": "dapo"}},
        optimiser={"lr": 1e-5, "warmup_steps": 0},
    )


def write_prompts(options: argparse.Namespace) -> None:
    """Write a prompt with its own picture for each group of each step."""
    rows = []
    for seed in range((WARM_UP + options.steps) * options.groups):
        messages, images = vlm.question(vlm.SHAPES[options.shape], options.prompt, seed)
        ((digest, content),) = images.items()
        (options.state / f"{digest}.png").write_bytes(content)
        rows.append({"id": str(seed), "prompt": messages[0].text, "images": [f"{digest}.png"]})
    (options.state / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def take_steps(options: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Take the steps, led by rank 0, and write the trained tensors to ``--state``."""
    spec = spec_of(options)
    assert spec.prompts is not None
    prompts = SourcePrompts.of_file(open_prompts(Path(spec.prompts), index_dir=options.state / "index"))
    learner = Learner.lead(WorkerSettings(device="cpu"), spec, options.state, ranks, prompts)
    assert learner.policy.shares_prompts
    seconds, reports = [], []
    for step in range(WARM_UP + options.steps):
        groups = [
            group_of(learner, number, options) for number in range(step * options.groups, (step + 1) * options.groups)
        ]
        begun = time.perf_counter()
        reports.append(learner.update(groups, step + 1))
        seconds.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    trained = learner.gather()
    gathered = time.perf_counter() - begun
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in trained.items()},
        options.state / f"{options.side}.safetensors",
    )
    metrics = [{"loss": report.loss, "grad_norm": report.grad_norm, "kl": report.kl} for report in reports]
    return {"seconds": seconds[WARM_UP:], "gather_seconds": gathered, "metrics": metrics}


def group_of(learner: Learner, number: int, options: argparse.Namespace) -> TrainingGroup:
    tokens = len(learner.process_prompt(learner.prompts[number]).token_ids)
    assert tokens == options.prompt, tokens
    dice = random.Random(number)
    longest = vlm.completions(options.size, options.response, number)
    responses = tuple(ids[: options.response - place % 4] for place, ids in enumerate(longest))
    engine = tuple(tuple(-10.0 for _ in one) for one in responses)
    return TrainingGroup(number, tokens, responses, engine, tuple(dice.gauss(0, 1) for _ in responses))


def run(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a side in separate processes."""
    ranks, threads = SIDES[side]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launch, __file__, "--side", side]
    for name in ("shape", "prompt", "size", "response", "groups", "budget", "steps", "tuning", "state"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=3600)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side, rounds in found.items():
            rounds.append(run(side, options))
            print(side, rounds[-1]["seconds"], flush=True)
    seconds = {side: [value for one in rounds for value in one["seconds"]] for side, rounds in found.items()}
    pairs = list(zip(found["one"][0]["metrics"], found["two"][0]["metrics"], strict=True))
    differences = {
        name: max(abs(theirs[name] - ours[name]) for ours, theirs in pairs) / max(abs(ours[name]) for ours, _ in pairs)
        for name in pairs[0][0]
    }
    return {
        "seconds": {side: statistics.median(values) for side, values in seconds.items()},
        "all_seconds": seconds,
        "gather_seconds": statistics.median(one["gather_seconds"] for one in found["two"]),
        "metric_difference": differences,
        "weight_difference": _weight_difference(options.state),
    }


def _weight_difference(state: Path) -> float:
    """Compute the norm of the difference of the trained tensors relative to their norm."""
    ours, theirs = (load_file(state / f"{side}.safetensors") for side in SIDES)
    different = sum((ours[name] - theirs[name]).double().square().sum() for name in ours)
    whole = sum(tensor.double().square().sum() for tensor in ours.values())
    return float((different / whole) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(vlm.SHAPES), default="smollm2-135m")
    parser.add_argument("--tuning", choices=("full", "lora"), default="full", help=argparse.SUPPRESS)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--size", type=int, default=8, help="responses to a prompt")
    parser.add_argument("--response", type=int, default=16, help="tokens of a response")
    parser.add_argument("--groups", type=int, default=4, help="prompts in a step")
    parser.add_argument("--budget", type=int, default=1024, help="micro_batch_tokens")
    parser.add_argument("--steps", type=int, default=2, help="measured steps of each process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--state", type=Path, default=Path(".mor/bench/ranks"), help="model, prompts and weights")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    end_children_on_sigterm()
    options.state = options.state.resolve()
    if options.side:
        torch.set_num_threads(SIDES[options.side][1])
        ranks = Ranks.join(torch.device("cpu"))
        if ranks.leads:
            found = take_steps(options, ranks)
            ranks.broadcast(None)
            print("\n" + json.dumps(found))
        else:
            follow_leader(WorkerSettings(device="cpu"), ranks)
        ranks.leave()
        return
    options.state.mkdir(parents=True, exist_ok=True)
    vlm.save(vlm.SHAPES[options.shape], options.state / options.shape)
    write_prompts(options)
    cases = []
    for tuning in ("full", "lora"):
        options.tuning = tuning
        cases.append({"tuning": tuning, **compare(options)})
        print(cases[-1], flush=True)
    kept = ("shape", "prompt", "size", "response", "groups", "budget", "rounds")
    record(f"ranks-{options.shape}", {**{key: getattr(options, key) for key in kept}, "cases": cases})


if __name__ == "__main__":
    main()
