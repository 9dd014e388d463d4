"""Comparison of plain and shared prompts in the trainer: time of a step if the model processes each prompt once.

``python bench/shared_prompt.py`` writes ``bench/results/shared-prompt-SHAPE.json`` and a plot beside it. One model with
random weights takes the same steps both ways, alternating; ``bound`` is the ratio of floating-point operations of the
two, forward and backward, policy and reference, the language-model head included, and ``of_bound`` the fraction of it
that was reached. The default took 6.7 GB of memory; ``--shape smollm2-10-layers`` is for machines with less.

``--shape gemma3-small`` has sliding windows in five of six layers, ``--shape qwen3.5-small`` gated delta nets in three
of four.

``--device cuda --shape qwen2.5-vl-3b`` runs it in bfloat16 on a GPU, with peak memory, and model FLOPs utilisation of
the peak given by ``--peak-tflops``.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
import vlm
from machine import CLOCKS, RESULTS, record
from mor_trainer.model.loading import autocast_dtype
from mor_trainer.model.policy import Policy
from mor_trainer.ranks import Ranks
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import Updater

PATHS = ("plain", "shared")


def flops(shape: vlm.Shape, path: str, prompt: int, size: int, response: int) -> float:
    """Count the FLOPs of a group's forward pass, with products that a token sees only."""
    tail = response - 1
    if path == "plain":
        return shape.flops(size * (prompt + tail), size * shape.pairs(0, prompt + tail), size * response)
    pairs = shape.pairs(0, prompt) + size * shape.pairs(prompt, prompt + tail)
    return shape.flops(prompt + size * tail, pairs, size * response)


def timed(policy: Policy, updater: Updater, path: str, step: list[Any], clock: str) -> dict[str, float]:
    """Measure a step on one path: seconds without the optimiser, and peak memory above that before the step."""
    policy.shares_prompts = path == "shared"
    cuda = policy.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if cuda else 0
    shares = StepTimer(CLOCKS[clock])
    updater.step(step, 1, shares)
    if cuda:
        torch.cuda.synchronize()
    seconds, named = shares.finish()
    gradients = sum(p.nbytes for p in policy.trainable.values())
    memory = {"activation_gb": (torch.cuda.max_memory_allocated() - held - gradients) / 1e9} if cuda else {}
    return {"step": seconds, "forward_backward": seconds - named["optimiser"], **memory}


def case(policy: Policy, updater: Updater, options: argparse.Namespace, prompt: int, size: int) -> dict[str, Any]:
    """Measure both paths on the same groups, alternating; return the median of the ratios of neighbours."""
    shape = vlm.SHAPES[options.shape]
    response = options.response
    step = vlm.groups(policy, shape, prompt=prompt, size=size, response=response, count=options.groups)
    runs: dict[str, list[dict[str, float]]] = {path: [] for path in PATHS}
    if options.device == "cuda":  # warms up kernels and memory of these shapes
        for path in PATHS:
            timed(policy, updater, path, step, options.clock)
    for _ in range(options.rounds):
        for path in PATHS:
            runs[path].append(timed(policy, updater, path, step, options.clock))
    speedup = statistics.median(
        plain["forward_backward"] / shared["forward_backward"]
        for plain, shared in zip(runs["plain"], runs["shared"], strict=True)
    )
    work = {path: flops(shape, path, prompt, size, response) for path in PATHS}
    bound = work["plain"] / work["shared"]
    found: dict[str, Any] = {
        "prompt": prompt,
        "group_size": size,
        "response": response,
        "speedup": speedup,
        "bound": bound,
        "of_bound": speedup / bound,
    }
    passes = 3 + policy.has_reference  # forward, twice that backward, and the reference's forward
    for path in PATHS:
        found[path] = {name: statistics.median(run[name] for run in runs[path]) for name in runs[path][0]}
        seconds = found[path]["forward_backward"]
        found[path]["tflops"] = passes * options.groups * work[path] / seconds / 1e12
        found[path]["response_tokens_per_second"] = options.groups * size * response / seconds
        if options.peak_tflops:
            found[path]["mfu"] = found[path]["tflops"] / options.peak_tflops
    return found


def plot(cases: list[dict[str, Any]], name: str) -> None:
    """Plot the speed-up over prompt length, one line for each group size, its bound dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for size in sorted({found["group_size"] for found in cases}):
        own = sorted((found for found in cases if found["group_size"] == size), key=lambda found: found["prompt"])
        lengths = [found["prompt"] for found in own]
        (line,) = axes.plot(lengths, [found["speedup"] for found in own], marker="o", label=f"G = {size}")
        axes.plot(lengths, [found["bound"] for found in own], linestyle="--", color=line.get_color())
    axes.set(xscale="log", xlabel="prompt, tokens", ylabel="plain / shared, forward and backward", ylim=(0, None))
    axes.set_xticks(
        sorted({found["prompt"] for found in cases}), labels=sorted({str(c["prompt"]) for c in cases}, key=int)
    )
    axes.legend(title="dashed: FLOP bound")
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(vlm.SHAPES), default="smollm2-135m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 128, 256, 512, 1024], help="tokens of a prompt")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16], help="responses to a prompt")
    parser.add_argument("--response", type=int, default=16, help="tokens of a response")
    parser.add_argument("--groups", type=int, default=2, help="prompts in a step")
    parser.add_argument("--budget", type=int, default=4096, help="micro_batch_tokens of both paths")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing")
    parser.add_argument("--peak-tflops", type=float, help="of the device and precision, for the utilisation")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = vlm.SHAPES[options.shape]
    with torch.device(options.device):
        model, processor = vlm.build(shape)
    spec = vlm.spec_of(
        micro_batch_tokens=options.budget,
        sampling={"max_tokens": options.response},
        gradient_checkpointing=options.recompute,
    )
    autocast = autocast_dtype(options.precision, options.device)
    policy = Policy(model, processor, spec, ranks=Ranks(torch.device(options.device)), autocast=autocast)
    if not policy.shares_prompts:
        raise SystemExit("this model cannot share prompts; see the log line above")
    updater = Updater(policy, spec)
    warm_up = vlm.groups(policy, shape, prompt=128, size=2, response=options.response, count=1)
    for path in PATHS:
        timed(policy, updater, path, warm_up, options.clock)
    name = f"shared-prompt-{options.shape}" + ("" if options.device == "cpu" else f"-{options.device}")
    cases = []
    for prompt in options.prompts:
        for size in options.sizes:
            cases.append(case(policy, updater, options, prompt, size))
            print(cases[-1], flush=True)
            settings = {key: value for key, value in vars(options).items() if key not in ("prompts", "sizes")}
            record(name, {**settings, "dtype": str(autocast or torch.float32), "cases": cases})
    plot(cases, name)


if __name__ == "__main__":
    main()
