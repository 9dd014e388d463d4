"""Table of the first run's gain and cost, for docs/first-run.md."""

from __future__ import annotations

from typing import Any

from tables.results import measured_on, read, table


def first_run() -> str:
    """Format right answers before and after the run, and the cost of each stage, as Markdown."""
    result = read("first-run")
    if result is None:
        return "Not measured yet; run `python bench/first_run.py`.\n"
    before, after, stages = result["before"], result["after"], result["stages"]
    answers = [["questions", "right before, %", "right after, %"], ["---", "--:", "--:"]]
    answers += [[name, f"{before[name]:.1f}", f"{after[name]:.1f}"] for name in before]
    costs = [["stage", "minutes", "processor time, minutes", "peak memory, GB"], ["---", *["--:"] * 3]]
    costs += [[name, *_cost(cost), f"{cost['peak_memory_gb']:.1f}"] for name, cost in stages.items()]
    costs.append(["all", *_cost(_sum(stages)), f"{max(cost['peak_memory_gb'] for cost in stages.values()):.1f}"])
    return f"{table(answers)}\n{table(costs)}\n{_remarks(result)}\n"


def _sum(stages: dict[str, Any]) -> dict[str, float]:
    return {key: sum(cost[key] for cost in stages.values()) for key in ("seconds", "cpu_seconds")}


def _cost(cost: dict[str, float]) -> list[str]:
    return [f"{cost[key] / 60:.1f}" for key in ("seconds", "cpu_seconds")]


def _remarks(result: dict[str, Any]) -> str:
    """Describe the state of the run at its end, the load of the machine, and the measurement."""
    whole, cores = _sum(result["stages"]), result["machine"]["cores"]
    used = whole["cpu_seconds"] / (whole["seconds"] * cores)
    lines = (
        f"The journey used {100 * used:.0f} % of the {cores} cores"
        + ("; other programs ran beside it. On a free machine it takes less time." if used < 0.5 else "."),
        measured_on(result, "python bench/first_run.py"),
    )
    return "\n".join(f"- {line}" for line in lines)
