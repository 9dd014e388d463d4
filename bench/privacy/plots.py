"""Figure of ε, held-out accuracy and success of membership attacks; equal numbers give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tables.privacy import NO_PRIVACY, in_order

_ACCURACY, _AUC = "tab:blue", "tab:red"

Arms = Mapping[str, Mapping[str, Any]]
"""ε, or ``none`` -> figures of one client's model."""


def draw(found: Mapping[str, Any], file: Path) -> None:
    """Draw one panel for each client of the part ``membership``."""
    matplotlib.rcParams["svg.hashsalt"] = "privacy"
    clients: Mapping[str, Arms] = found["clients"]
    figure = Figure(figsize=(4 * len(clients), 3.6), layout="constrained")
    for axes, (client, arms) in zip(figure.subplots(1, len(clients), squeeze=False)[0], clients.items(), strict=True):
        _panel(axes, client, arms)
    figure.savefig(file, metadata={"Date": None})


def _panel(axes: Axes, client: str, arms: Arms) -> None:
    names = in_order(arms)
    places = list(range(len(names)))
    accuracy = [arms[name]["held_out"]["accuracy"] for name in names]
    axes.plot(places, accuracy, color=_ACCURACY, marker="o", label="held-out accuracy")
    attacks = [arms[name]["best"].get("picture") for name in names]
    known = [(place, attack) for place, attack in zip(places, attacks, strict=True) if attack is not None]
    around = [
        [attack["auc"] - attack["auc_interval"][0] for _, attack in known],
        [attack["auc_interval"][1] - attack["auc"] for _, attack in known],
    ]
    axes.errorbar(
        [place for place, _ in known],
        [attack["auc"] for _, attack in known],
        yerr=around,
        color=_AUC,
        marker="s",
        capsize=3,
        label="AUC of the best attack per picture (95 %)",
    )
    axes.axhline(0.5, color="0.6", linestyle=":", linewidth=1)
    axes.set_xticks(places, [f"ε = {name}" if name != NO_PRIVACY else "no privacy" for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(0.4, 1)
    axes.set_title(client)
    axes.legend(fontsize=7, loc="lower right")
