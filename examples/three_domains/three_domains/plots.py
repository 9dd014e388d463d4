"""Generator of the Chart pictures: bar and line charts of published series, with matplotlib.

The axis range belongs to the quantity, not to the chart, so that heights can be read at thumbnail size. Every series
(one country's life expectancy, one state's obesity rate, …) belongs to one split only.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from three_domains.chart import caption, count_question, value_question
from three_domains.questions import PICTURE_SIZE, SPLITS, AnnotatedPicture, Split

_SHARES: dict[Split, float] = {"server": 0.4, "client": 0.3, "anchor": 0.06, "dev": 0.06, "test": 0.18}
_COLOURS = ("tab:blue", "tab:green", "tab:red", "tab:orange", "tab:purple", "tab:cyan", "0.35")


@dataclass(frozen=True)
class Quantity:
    """Measured quantity: title, unit, top of its axis and, per series name, (label, value) points in order."""

    title: str
    unit: str
    top: float
    series: dict[str, list[tuple[str, float]]]


def load_quantities(root: Path) -> list[Quantity]:
    """Read the quantities out of the unpacked ``vega-datasets`` package."""
    data = root / "package/data"
    life: dict[str, list[tuple[str, float]]] = {}
    children: dict[str, list[tuple[str, float]]] = {}
    for row in json.loads((data / "gapminder.json").read_text(encoding="utf-8")):
        life.setdefault(row["country"], []).append((str(row["year"]), float(row["life_expect"])))
        children.setdefault(row["country"], []).append((str(row["year"]), float(row["fertility"])))
    obesity = {
        row["state"]: [("1995", 100 * float(row["rate"]))]
        for row in json.loads((data / "obesity.json").read_text(encoding="utf-8"))
    }
    return [
        Quantity("Life expectancy (years)", "years", 90, life),
        Quantity("Children per woman", "children", 9, children),
        Quantity("Obesity (% of adults)", "percent", 24, obesity),
    ]


def split_series(names: list[str], rng: Random) -> dict[Split, list[str]]:
    """Divide series so that each belongs to exactly one split and every split gets at least three."""
    shuffled = rng.sample(sorted(names), len(names))
    parts: dict[Split, list[str]] = {}
    start = 0
    for split in SPLITS[1:]:
        size = max(3, round(_SHARES[split] * len(names)))
        parts[split] = shuffled[start : start + size]
        start += size
    parts["server"] = shuffled[start:]
    return parts


class Plots:
    """Generator of bar charts of several series and line charts of one."""

    def __init__(self, quantities: list[Quantity], seed: int) -> None:
        """Split the series by ``seed``; quantities with the same names (countries) get the same split."""
        self._quantities = quantities
        self._sheets = {quantity.title: _Sheet(quantity.top) for quantity in quantities}
        self._parts = {
            quantity.title: split_series(list(quantity.series), Random(f"{seed}/{sorted(quantity.series)}"))
            for quantity in quantities
        }

    def pictures(self, split: Split, count: int, rng: Random) -> Iterator[AnnotatedPicture]:
        """Yield ``count`` charts of the series of ``split``."""
        for _ in range(count):
            quantity = rng.choices(self._quantities, (0.4, 0.35, 0.25))[0]
            names = self._parts[quantity.title][split]
            single = len(quantity.series[names[0]]) == 1
            yield (
                self._line(quantity, names, rng)
                if not single and rng.random() < 0.3
                else self._bars(quantity, names, rng)
            )

    def _bars(self, quantity: Quantity, names: list[str], rng: Random) -> AnnotatedPicture:
        shown = rng.sample(names, rng.randint(min(3, len(names)), min(6, len(names))))
        index = rng.randrange(len(quantity.series[shown[0]]))
        points = [quantity.series[name][index] for name in shown]
        values = [value for _, value in points]
        sheet = self._sheets[quantity.title]
        sheet.axes.set_title(f"{quantity.title}, {points[0][0]}", fontsize=7)
        sheet.axes.bar(range(len(values)), values, color=rng.choice(_COLOURS), width=rng.uniform(0.55, 0.8))
        sheet.axes.set_xticks(range(len(values)), [name[:7] for name in shown], fontsize=5)
        ends = {"tallest": max(values), "shortest": min(values), "first": values[0], "last": values[-1]}
        targets = rng.sample(sorted(ends), 3)
        questions = [value_question(target, round(ends[target], 2), quantity.unit) for target in targets]
        text = caption(values, quantity.unit, bars=True)
        return AnnotatedPicture(
            sheet.take(), _sources(quantity, shown), text, (*questions, count_question(len(values)))
        )

    def _line(self, quantity: Quantity, names: list[str], rng: Random) -> AnnotatedPicture:
        name = rng.choice(names)
        series = quantity.series[name]
        first = rng.randrange(len(series) - 5)
        points = series[first : rng.randrange(first + 5, len(series)) + 1]
        values = [value for _, value in points]
        sheet = self._sheets[quantity.title]
        sheet.axes.set_title(f"{quantity.title}, {name[:12]}", fontsize=7)
        sheet.axes.plot(
            range(len(values)), values, color=rng.choice(_COLOURS), marker=rng.choice(["o", "", "s"]), markersize=3
        )
        sheet.axes.set_xticks([0, len(values) - 1], [points[0][0], points[-1][0]], fontsize=5)
        ends = {"start": values[0], "end": values[-1]}
        questions = tuple(value_question(target, round(value, 2), quantity.unit) for target, value in ends.items())
        text = caption(values, quantity.unit, bars=False)
        return AnnotatedPicture(sheet.take(), _sources(quantity, [name]), text, questions)


class _Sheet:
    """Axes for all charts of a quantity, one after the other, because axes are slow to create.

    A chart is the same, byte for byte, as on its own axes.
    """

    def __init__(self, top: float) -> None:
        self._figure = Figure(figsize=(PICTURE_SIZE / 84, PICTURE_SIZE / 84), dpi=84)
        self.axes = self._figure.add_axes((0.12, 0.12, 0.85, 0.76))
        self.axes.set_ylim(0, top)
        self.axes.set_yticks(np.linspace(0, top, 4))
        self.axes.tick_params(labelsize=5, length=2, pad=1)
        self.axes.grid(axis="y", linewidth=0.4)

    def take(self) -> Image.Image:
        """Return the drawing and clear the sheet."""
        buffer = io.BytesIO()
        self._figure.savefig(buffer, format="rgba")
        for bars in list(self.axes.containers):
            bars.remove()
        for line in list(self.axes.lines):
            line.remove()
        self.axes.relim()
        pixels = np.frombuffer(buffer.getvalue(), np.uint8).reshape(PICTURE_SIZE, PICTURE_SIZE, 4)
        return Image.fromarray(pixels[:, :, :3].copy())


def _sources(quantity: Quantity, names: list[str]) -> frozenset[str]:
    return frozenset(f"series:{quantity.title}:{name}" for name in names)
