"""Table of the demonstration's gains and costs, for the README."""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from tables.results import read, table

_ARMS = {
    "aligned": "aligned by MoR",
    "shuffled": "control: shuffled rewards",
    "supervised": "reference: supervised tuning on pooled answers",
}
PRIVATE = "demo-default-dp3"
"""Record of the demonstration whose clients train with differential privacy."""
_OPTIONS = {PRIVATE: " --dp-epsilon 3"}
_PHASES = 4
"""Number of phases whose duration is shown: the longest ones."""


def demonstration(name: str = "demo-default") -> str:
    """Format the gold accuracy of base and arms by domain, and the cost of the run, as Markdown."""
    result, command = read(name), f"python bench/demo.py{_OPTIONS.get(name, '')}"
    if result is None:
        return f"Not measured yet; run `{command}`.\n"
    arms = result["arms"]
    runs = arms["aligned"]["runs"]
    domains = list(runs[0]["accuracy"]["base"])
    head = ["greedy answers, gold accuracy in %", *domains, "mean gain, points"]
    rows = [head, ["---", *["--:"] * (len(domains) + 1)]]
    rows.append(["base", *(_accuracies(runs, "base", domain) for domain in domains), ""])
    for arm, title in _ARMS.items():
        if arm in arms:
            found = arms[arm]["runs"]
            gain = arms[arm]["gain_points"]["mean"]
            spread = f" ({gain['low']:+.1f} to {gain['high']:+.1f})" if len(found) > 1 else ""
            shown = [_accuracies(found, "aligned", domain) for domain in domains]
            rows.append([title, *shown, f"{gain['mean']:+.1f}{spread}"])
    return f"{table(rows)}\n{_cost(result, runs, command)}\n"


def _accuracies(runs: list[dict[str, Any]], which: str, domain: str) -> str:
    values = [100 * run["accuracy"][which][domain]["accuracy"] for run in runs]
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}"


def _cost(result: dict[str, Any], runs: list[dict[str, Any]], command: str) -> str:
    first, machine = runs[0], result["machine"]
    run = first["run"]
    questions = sum(domain["n"] for domain in first["accuracy"]["base"].values())
    steps = ", ".join(f"{value:.2f}" for value in sorted(one["run"]["step_seconds"] for one in runs))
    swap = fmean(one["run"]["weight_swaps"]["mean_seconds"] for one in runs)
    memory = max(one["peak_memory_gb"] for one in runs)
    whole = [one for one in runs if one["from_nothing"]]
    lines = (
        f"One seed, {questions} test questions."
        if len(runs) == 1
        else f"Mean over {len(runs)} seeds (lowest to highest); each seed has its own pictures, base model, reward "
        f"models and {questions} test questions.",
        f"Training: {run['steps']} steps of {run['groups_per_step']} prompts x {run['group_size']} responses; "
        f"{steps} s per step (median of each seed).",
        *([f"Duration from the pictures to the table, downloads excluded: {_minutes(whole)}."] if whole else []),
        f"Memory: {memory:.1f} GB at peak. A weight swap took {swap:.2f} s.",
        f"KL to the reference at the end: {fmean(one['run']['kl'] for one in runs):.3f} nats per token.",
        f"Measured {result['measured']} on {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_gb']:.0f} GB, {machine['accelerator'] or 'no GPU'}, by `{command}` at commit "
        f"{result['commit']}.",
    )
    return "\n".join(f"- {line}" for line in lines)


def _minutes(runs: list[dict[str, Any]]) -> str:
    """Format the minutes of each whole demonstration, and the median of their longest phases."""
    seconds = {phase: median(run["phase_seconds"][phase] for run in runs) for phase in runs[0]["phase_seconds"]}
    longest = sorted(seconds, key=lambda phase: -seconds[phase])[:_PHASES]
    listed = ", ".join(f"{phase} {seconds[phase] / 60:.1f}" for phase in longest)
    each = ", ".join(f"{whole / 60:.1f}" for whole in sorted(run["wall_seconds"] for run in runs))
    return f"{each} minutes (longest phases, median over seeds: {listed})"


def private_demonstration() -> str:
    """Format the demonstration whose clients train with differential privacy as Markdown."""
    return demonstration(PRIVATE)
