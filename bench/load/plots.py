"""Plots of the router's load: groups a second and CPU time of a group, by clients; equal numbers give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure


def draw(found: Mapping[str, Any], file: Path) -> None:
    """Draw the part ``router``, one line for each number of replicas."""
    matplotlib.rcParams["svg.hashsalt"] = "load"
    cells, groups = found["cells"], found["groups"]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    rates, costs = figure.subplots(1, 2)
    for replicas in sorted({cell["replicas"] for cell in cells}):
        of = sorted((cell for cell in cells if cell["replicas"] == replicas), key=lambda cell: int(cell["clients"]))
        shown = [(cell["clients"], cell["best"]) for cell in of if cell["best"]]
        label = f"{replicas} replica{'s' if replicas > 1 else ''}"
        rates.plot([c for c, _ in shown], [groups * best["per_second"] for _, best in shown], marker="o", label=label)
        spent = [(cell["clients"], cpu_ms(step, groups)) for cell in of for step in [cell["best"] or cell["steps"][0]]]
        costs.plot([c for c, _ in spent], [ms for _, ms in spent], marker="o", label=label)
    for axes, title in ((rates, "groups a second within the bound"), (costs, "router's CPU time of a group, ms")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("clients")
        axes.set_ylabel(title)
        axes.legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None})


def cpu_ms(step: Mapping[str, float], groups: int) -> float:
    """Return the milliseconds of the routers' CPU time for a group."""
    return 1e3 * step["cores"] / (step["per_second"] * groups)
