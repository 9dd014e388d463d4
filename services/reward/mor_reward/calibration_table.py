"""Table of how a reward model agrees with held-out preferences, as the commands print it."""

from __future__ import annotations

from mor_core.printable import visible
from mor_core.terminal import print_table
from mor_core.wire import Calibration
from rich.markup import escape

from mor_reward.console import err, out


def show_calibration(name: str, figures: Calibration | None, caption: str) -> None:
    """Print figures and ``caption``; warn of a model that prefers what was rejected. ``None``: it is not calibrated."""
    if figures is None:
        out.print(caption, highlight=False, markup=False, soft_wrap=True)
        return
    low, high = figures.pair_accuracy_interval
    row = (
        escape(visible(name)),
        str(figures.pairs),
        f"{figures.pair_accuracy:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{figures.ece:.3f}",
        f"{figures.temperature:.3g}",
    )
    print_table(out, ("reward model", "held-out pairs", "accuracy", "95 % interval", "ECE", "temperature"), [row])
    out.print(caption, highlight=False, markup=False, soft_wrap=True)
    if high < 0.5:
        err.print(
            f"[bold yellow]warning:[/] the model prefers the rejected response in {1 - figures.pair_accuracy:.0%} "
            "of the held-out pairs: are the labels swapped? Compare a few lines of the data with their pictures; "
            "such a model gets no weight",
            markup=True,
            highlight=False,
        )
