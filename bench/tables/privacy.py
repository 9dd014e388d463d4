"""Tables of the privacy pages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tables.results import RESULTS, measured_on, read, table

NO_PRIVACY = "none"
"""Name of the arm without differential privacy; the others are named by their ε."""
_PLOT = "privacy.svg"


def hidden_scores() -> str:
    """Format what sums of weighted scores hide of one client as Markdown."""
    result = read("hidden-scores")
    if result is None:
        return "Not measured yet; run `python bench/hidden_scores.py`.\n"
    rows = [
        ["shares of the sum", "AUC on single scores", "AUC on sums", "AUC on sums, with copies"],
        ["---", "--:", "--:", "--:"],
        *(
            [name, f"{result['single']:.2f}", f"{found['auc']:.2f}", f"{found['auc_with_copies']:.2f}"]
            for name, found in result["sums"].items()
        ),
    ]
    worst = max(found["error_of_two_sums"] for found in result["sums"].values())
    return (
        f"{table(rows)}\nCopies rank as their models with correlation {result['copy']:g}. Two sums of a group give a "
        f"client's scores to {worst:.0e} logits. {measured_on(result, 'python bench/hidden_scores.py')}\n"
    )


def in_order(arms: Iterable[str]) -> list[str]:
    """Return arms by ε, the one without differential privacy last."""
    return sorted(arms, key=lambda name: math.inf if name == NO_PRIVACY else float(name))


def private_models() -> str:
    """Format accuracy and attacks of the demonstration's models, by ε, as Markdown, with the figure if it is drawn."""
    result = read("privacy")
    if result is None or "membership" not in result:
        return "Not measured yet; run `python bench/privacy.py`.\n"
    rows = [
        ["client", "ε", "held-out accuracy", "attack per picture: AUC", "true positives at 1 % false ones"],
        ["---", "--:", "--:", "--:", "--:"],
    ]
    for client, arms in result["membership"]["clients"].items():
        for name in in_order(arms):
            rows.append([client, name, f"{arms[name]['held_out_accuracy']:.3f}", *_attack(arms[name]["best"])])
    figure = f"\n![ε, held-out accuracy and attacks](../bench/results/{_PLOT})\n" if (RESULTS / _PLOT).is_file() else ""
    return f"{table(rows)}{figure}\n{measured_on(result, 'python bench/privacy.py')}\n"


def _attack(best: dict[str, Any]) -> list[str]:
    attack = best.get("picture")
    if attack is None:
        return ["", ""]
    low, high = attack["auc_interval"]
    return [f"{attack['auc']:.2f} ({low:.2f} to {high:.2f})", f"{100 * attack['true_positives']:.0f} %"]
