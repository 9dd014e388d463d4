"""Results of the study: a summary over seeds, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from quality.gold import BASE
from quality.ranking import lead
from quality.tables import interval, table

__all__ = ["BASE", "REFERENCE", "markdown", "summary"]

Found = Mapping[str, Any]

REFERENCE = "MoR (GRPO on the mixture)"
"""Title of the arm to which all others are compared."""


def summary(runs: Mapping[str, Sequence[Found]], domains: Sequence[str]) -> dict[str, Any]:
    """Average the runs of each arm, with MoR's lead in gold over it, paired over questions and seeds."""
    found: dict[str, Any] = {}
    reference = runs.get(REFERENCE)
    for title, of_arm in runs.items():
        gold = {name: [run["gold"][name] for run in of_arm] for name in of_arm[0]["gold"]}
        row: dict[str, Any] = {
            "gold": {name: fmean(levels) for name, levels in gold.items()},
            "runs": gold,
            "least satisfied": [run["least satisfied"] for run in of_arm],
            "bytes": fmean(run.get("bytes to clients", 0) + run.get("bytes from clients", 0) for run in of_arm),
            "seconds": fmean(run.get("seconds", 0) for run in of_arm),
            "rows through the gradient": of_arm[0].get("rows through the gradient", {}),
        }
        if "adaptation" in of_arm[0]:
            row["adaptation"] = {
                steps: {of: fmean(run["adaptation"][steps][of] for run in of_arm) for of in ("own", "elsewhere")}
                for steps in of_arm[0]["adaptation"]
            }
        if reference is not None and len(of_arm) in (1, len(reference)):
            ours, theirs = (np.array([run["correct"] for run in some]) for some in (reference, of_arm))
            ahead = lead(ours, theirs, domains)
            row["MoR ahead"] = {name: vars(value) for name, value in (("mean", ahead.mean), ("worst", ahead.worst))}
        found[title] = row
    return found


def markdown(result: Found) -> str:
    """Format the study as a table."""
    arms = result["arms"]
    domains = list(next(iter(arms.values()))["gold"])
    adapted = next(iter(arms.values())).get("adaptation", {})
    head = [
        "arm",
        "gold, %",
        *(f"{name} (not trained on)" if name == result["without"] else name for name in domains),
        "MoR ahead, mean",
        "MoR ahead, worst domain",
        "least satisfied client, %",
        "bytes",
        *(f"new client: own / elsewhere after {steps} steps, %" for steps in adapted),
    ]
    rows = []
    for title, row in arms.items():
        ahead = row.get("MoR ahead")
        least = min(row["least satisfied"], key=lambda one: float(one["percent"]))
        rows.append(
            [
                title,
                f"{fmean(row['gold'].values()):.1f}",
                *(f"{row['gold'][name]:.1f}" for name in domains),
                *([interval(ahead["mean"]), interval(ahead["worst"])] if ahead else ["", ""]),
                f"{least['percent']:.1f} ({least['client']})",
                f"{row['bytes']:,.0f}",
                *(f"{level['own']:.1f} / {level['elsewhere']:.1f}" for level in row.get("adaptation", {}).values()),
            ]
        )
    budget = result["budget"]
    return (
        f"{table(head, rows)}\n\nEqual compute: each client that trains takes {budget['steps']} steps of "
        f"{budget['batch']} pairs; a server that trains passes as many responses through the gradient as all clients "
        f"pairs. Seeds: {len(result['seeds'])}. Questions: {result['questions']:,}."
    )
