"""Final report of the demonstration: tables and ``report.json``. Unknown values are dashes, and null in the file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mor_core import atomic
from rich.console import Console
from rich.table import Table

Json = dict[str, Any]

_WINDOW = 10
"""Most steps at the beginning and at the end whose means are compared."""


def one_line(snapshot: Json) -> str:
    """Describe the state of a run in one line, for a progress bar."""
    metrics = snapshot["metrics"] or {}
    shown = {"reward": metrics.get("reward_mean"), "KL": metrics.get("kl")}
    figures = "  ".join(f"{name} {value:+.3f}" for name, value in shown.items() if value is not None)
    return f"{snapshot['state']}  {figures}" if figures else f"{snapshot['state']}, waiting for the first step"


def summarise(
    *,
    spec: Json,
    snapshot: Json,
    points: Sequence[Json],
    swaps: Json,
    fit: Json,
    accuracy: Json,
    seconds: Json,
    state: Path,
) -> Json:
    """Make the report: accuracy before and after, rewards and weights of the clients, times, paths."""
    window = max(1, min(_WINDOW, len(points) // 2))
    first, last = points[:window], points[-window:]
    clients = sorted({name for point in points for name in point["clients"]})
    domains = sorted({name for point in points for name in point["domains"]})
    return {
        "accuracy": accuracy,
        "client_rewards": {
            name: [mean_of(part, "clients", name, "reward_mean") for part in (first, last)] for name in clients
        },
        "gate_weights": {
            domain: {name: mean_of(points, "domains", domain, "weights", name) for name in clients}
            for domain in domains
        },
        "gate_fit": fit,
        "run": {
            "id": snapshot["id"],
            "steps": snapshot["step"],
            "groups_per_step": spec["groups_per_step"],
            "group_size": spec["group_size"],
            "step_seconds": statistics.median(point["step_seconds"] for point in points),
            "kl": mean_of(last, "kl"),
            "reward": [mean_of(part, "reward_mean") for part in (first, last)],
            "importance_ratio_max": max_of(points, "importance_ratio_max"),
            "time_shares": _time_shares(points),
            "weight_swaps": swaps,
            "checkpoint": snapshot["final"],
        },
        "phase_seconds": {title: round(value, 1) for title, value in seconds.items()},
        "state": str(state),
    }


def _time_shares(points: Sequence[Json]) -> dict[str, float]:
    total = sum(point["step_seconds"] for point in points)
    return {name: sum(point["seconds"][name] for point in points) / total for name in points[-1]["seconds"]}


def write(path: Path, report: Json) -> None:
    """Write ``report`` atomically."""
    atomic.write(path, (json.dumps(report, indent=2) + "\n").encode())


def show(console: Console, report: Json) -> None:
    """Print the tables of a report."""
    console.print(accuracy_table(report["accuracy"]))
    console.print(_clients(report))
    run = report["run"]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in run["time_shares"].items())
    console.print(
        f"{run['steps']} steps of {run['groups_per_step']} prompts x {run['group_size']} responses, "
        f"{run['step_seconds']:.2f} s per step (median); KL to the reference {_shown(run['kl'], '.3f')} nats per token"
    )
    console.print(f"time of a step: {shares}")
    console.print(_swaps(run["weight_swaps"]))
    console.print(f"checkpoint: {run['checkpoint']}")


def _swaps(swaps: Json) -> str:
    if not swaps["count"]:
        return "no weights were swapped"
    return (
        f"{swaps['count']:.0f} weight swaps of {swaps['mean_seconds']:.2f} s in the mean, "
        f"{swaps['share_within_1_s']:.0%} within 1 s"
    )


def accuracy_table(accuracy: Json) -> Table:
    """Make the table of base against aligned model by domain."""
    table = Table(title="Gold accuracy on held-out pictures, greedy answers (95 % interval)")
    for column in ("domain", "questions", "base", "aligned", "gain"):
        table.add_column(column, justify="left" if column == "domain" else "right")
    for domain, before in accuracy["base"].items():
        after = accuracy["aligned"][domain]
        table.add_row(
            domain,
            str(before["n"]),
            _share(before),
            _share(after),
            f"{100 * (after['accuracy'] - before['accuracy']):+.1f}",
        )
    return table


def _share(result: Json) -> str:
    low, high = result["interval_95"]
    return f"{100 * result['accuracy']:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def _clients(report: Json) -> Table:
    domains = list(report["gate_weights"])
    table = Table(title="Clients: mean reward on the training prompts, and their weight in each domain")
    for column in ("client", "first steps", "last steps", *(f"weight, {domain}" for domain in domains)):
        table.add_column(column, justify="left" if column == "client" else "right")
    for client, (first, last) in report["client_rewards"].items():
        weights = [_shown(report["gate_weights"][domain][client], ".2f") for domain in domains]
        table.add_row(client, _shown(first, "+.2f"), _shown(last, "+.2f"), *weights)
    return table


def _shown(value: float | None, form: str) -> str:
    return "\N{EN DASH}" if value is None else format(value, form)


def max_of(points: Sequence[Json], name: str) -> float | None:
    """Return the largest value of the metric; None if no point has one."""
    return max((point[name] for point in points if point.get(name) is not None), default=None)


def mean_of(points: Sequence[Json], *path: str) -> float | None:
    """Return the mean over points of the number at ``path``; None if no point has one."""
    found = []
    for point in points:
        value: Any = point
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            found.append(float(value))
    return fmean(found) if found else None
