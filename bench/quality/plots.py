"""Figures of the experiment as SVG; equal numbers give equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quality.questions.anchors import COUNTS

Found = Mapping[str, Any]

_HIGHLIGHT, _PLAIN, _UPPER = "tab:blue", "0.65", "tab:green"
_SHOWN = (
    "MoR",
    "oracle (best client per sub-skill)",
    "stacking (logistic regression)",
    "domain classifier + best client",
    "uniform, standardised",
    "nearest competence (FedGRPO)",
    "centralised reward model (pooled data)",
)
"""Arms whose curves are readable in one figure."""


def draw(found: Found, folder: Path, name: str) -> None:
    """Write ``folder/NAME-*.svg`` for the available results."""
    matplotlib.rcParams["svg.hashsalt"] = "quality"
    for subject, title, plot in _PLOTS:
        if subject not in found:
            continue
        figure = Figure(figsize=(9, 5), layout="constrained")
        plot(figure, found)
        figure.savefig(folder / f"{name}-{title}.svg", metadata={"Date": None})


def _ranking(figure: Figure, found: Found) -> None:
    axes = figure.subplots()
    rows = sorted(found["ranking"]["64"].items(), key=lambda item: item[1]["accuracy"]["mean"])
    for place, (arm, row) in enumerate(rows):
        accuracy = row["accuracy"]
        around = [[accuracy["mean"] - accuracy["low"]], [accuracy["high"] - accuracy["mean"]]]
        axes.barh(place, accuracy["mean"], xerr=around, color=_colour(arm), error_kw={"elinewidth": 1})
        axes.plot(row["worst"], place, "k|", markersize=12)
    axes.set_yticks(range(len(rows)), [arm for arm, _ in rows], fontsize=8)
    axes.set_xlim(50, 100)
    axes.set_xlabel("held-out pairs ranked as labelled, % (95 % interval; mark: worst domain)")


def _anchors(figure: Figure, found: Found) -> None:
    axes = figure.subplots()
    for arm, row in found["anchor_counts"].items():
        axes.plot(COUNTS, [fmean(row[str(count)]) for count in COUNTS], marker="o", **_line(arm))
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.set_xlabel("anchors")
    axes.set_ylabel("held-out pairs ranked as labelled, %")
    _legend(axes)


def _policies(figure: Figure, found: Found) -> None:
    left, right = figure.subplots(1, 2)
    for arm, curve in found["policies"]["by anchors"]["64"]["curves"].items():
        if arm in _SHOWN:
            gained = [100 * value for value in curve["correct"]]
            left.plot(curve["kl"], gained, marker="o", **_line(arm))
            right.plot(curve["proxy"], gained, marker="o", **_line(arm))
    left.set_xlabel("KL to the base policy, nats a response")
    left.set_ylabel("correct answers above base, points")
    right.set_xlabel("the arm's own reward above base, standard deviations")
    _legend(left)


def _colour(arm: str) -> str:
    return _HIGHLIGHT if arm == "MoR" else _UPPER if arm.startswith(("oracle", "centralised")) else _PLAIN


def _line(arm: str) -> dict[str, Any]:
    return {"label": arm, "linewidth": 2.5, "color": _HIGHLIGHT} if arm == "MoR" else {"label": arm, "linewidth": 1}


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=7)


_PLOTS: tuple[tuple[str, str, Callable[[Figure, Found], None]], ...] = (
    ("ranking", "ranking", _ranking),
    ("anchor_counts", "anchors", _anchors),
    ("policies", "policies", _policies),
)
"""Subject, name of its file, and function that draws it."""
