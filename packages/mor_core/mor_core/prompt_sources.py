"""Sources of a run's prompts: data sets from which groups are drawn by weight."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from mor_core.patterns import matching
from mor_core.wire import Documented

MOST_SOURCES = 100
"""Sources of a run, each with figures of its own in every step's metrics."""
_LARGEST_WEIGHT = 1e9
"""More than any file has rows."""
_SMALLEST_SHARE = 1e-7
"""Smallest share that is drawn, far above the rounding of shares."""
_LAST_STEP, _MOST_POINTS = 100_000, 32
"""Bounds of a schedule; the shares of each step up to its last point are kept in memory."""

WeightPoints = Sequence[tuple[int, float]]
"""Points (step, weight) in the order of their steps: linear between them, constant before and after."""

SourceName = Annotated[
    str,
    matching(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", "1 to 63 letters, digits, '.', '_', '-', a letter or digit first"),
]


class PromptFile(NamedTuple):
    """File of prompts, and other names of its columns."""

    path: str
    columns: str


class WeightPoint(Documented):
    """Weight of a source at a step."""

    step: int = Field(ge=0, le=_LAST_STEP)
    """Finished steps."""
    weight: float = Field(ge=0, le=_LARGEST_WEIGHT)
    """Weight from this step on; 0 draws nothing, or one group that the steps before left over."""


class PromptSource(Documented):
    """Prompts of one file, or of one domain of it, and how much of a run is drawn from them."""

    name: SourceName
    """Name in metrics; the ids of its prompts become ``name/id``."""
    prompts: str = Field(min_length=1)
    """Prompts, a ``mor.prompts/1`` file or what else is read as one."""
    columns: str | None = None
    """Other names of its columns, like ``prompt_columns``, which holds where this is null."""
    domain: str | None = Field(None, min_length=1)
    """Take only the rows with this domain label; null for all rows."""
    public: bool = False
    """True: all pictures and texts of these prompts are public. Clients whose ``asks`` rule wants public prompts are
    sent no others."""
    order: Literal["shuffled", "file"] = "shuffled"
    """Order in which each pass over the source draws its rows: shuffled by the run's seed, or that of the file, such as
    from easy to hard."""
    weight: float | None = Field(None, gt=0, le=_LARGEST_WEIGHT)
    """Weight in relation to the other sources: the weights of all sources are divided by their sum. 1 where neither
    this nor ``schedule`` is given."""
    schedule: tuple[WeightPoint, ...] = Field((), max_length=_MOST_POINTS)
    """Weights by step instead of ``weight``: linear between the points, constant before and after them."""

    @model_validator(mode="after")
    def _one_kind_of_weight(self) -> PromptSource:
        if self.schedule and self.weight is not None:
            raise ValueError(
                f"source {self.name!r} has both weight and schedule; leave out weight, or write it as the schedule's "
                "first point"
            )
        for before, after in pairwise(self.schedule):
            if after.step <= before.step:
                raise ValueError(
                    f"the schedule of source {self.name!r} has step {after.step} after step {before.step}; write its "
                    "points in the order of their steps, each step once"
                )
        return self

    def file(self, columns: str) -> PromptFile:
        """Return the file that the source reads. ``columns``: those of the run."""
        return PromptFile(self.prompts, columns if self.columns is None else self.columns)

    @property
    def weights(self) -> WeightPoints:
        """Weights by step, one at least."""
        if self.schedule:
            return tuple((point.step, point.weight) for point in self.schedule)
        return ((0, 1.0 if self.weight is None else self.weight),)


def weight_at(points: WeightPoints, step: int) -> float:
    """Return the weight at a step; every machine computes the same number."""
    after = bisect_right(points, step, key=lambda point: point[0])
    if after in (0, len(points)):
        return points[max(0, after - 1)][1]
    (left, low), (right, high) = points[after - 1], points[after]
    return low + (high - low) * ((step - left) / (right - left))


def check_sources(sources: Sequence[PromptSource]) -> None:
    """Check that the sources have different names, and at each step shares that can be drawn.

    Raises:
        ValueError: they do not.
    """
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two sources have the name {name!r}; give each a name of its own")
    points = [source.weights for source in sources]
    for step in sorted({step for one in points for step, _ in one}):  # between these, the weights are linear
        weights = [weight_at(one, step) for one in points]
        total = math.fsum(weights)
        if not total:
            raise ValueError(f"every source has weight 0 at step {step}; give one of them a weight there")
        for name, weight in zip(names, weights, strict=True):
            if 0 < weight < _SMALLEST_SHARE * total:
                raise ValueError(
                    f"source {name!r} has a share of {weight / total:.1g} at step {step}; give it {_SMALLEST_SHARE:g} "
                    "or more, or the weight 0"
                )
