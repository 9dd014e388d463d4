"""Sources of a run's prompts: data sets from which groups are drawn by weight."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, StringConstraints, model_validator

from mor_core.wire import Documented

MOST_SOURCES = 100
"""Sources of a run, each with figures of its own in every step's metrics."""
_LARGEST_WEIGHT, _SMALLEST_WEIGHT = 1e4, 1e-4
"""Range in which the rounding of shares is far below the smallest one."""
_LAST_STEP, _MOST_POINTS = 100_000, 100
"""Bounds of a schedule; the shares of each step up to its last point are kept in memory."""

SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class PromptFile(NamedTuple):
    """File of prompts, and other names of its columns."""

    path: str
    columns: str


class WeightPoint(Documented):
    """Weight of a source at a step."""

    step: int = Field(ge=0, le=_LAST_STEP)
    """Finished steps."""
    weight: float = Field(ge=0, le=_LARGEST_WEIGHT)
    """Weight from this step on, or 0 to draw nothing."""


class PromptSource(Documented):
    """Prompts of one file, or of one domain of it, and how much of a run is drawn from them."""

    name: SourceName
    """Name in metrics; the ids of its prompts become ``name/id``."""
    prompts: str = Field(min_length=1)
    """Prompts, a ``mor.prompts/1`` file or what else is read as one."""
    columns: str | None = None
    """Other names of its columns, like ``prompt_columns``, which holds where this is null."""
    domain: str | None = None
    """Take only the rows with this domain label; null for all rows."""
    order: Literal["shuffled", "file"] = "shuffled"
    """Order in which each pass over the source draws its rows: shuffled by the run's seed, or that of the file, such as
    from easy to hard."""
    weight: float | None = Field(None, ge=_SMALLEST_WEIGHT, le=_LARGEST_WEIGHT)
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
    def weights(self) -> tuple[tuple[int, float], ...]:
        """Points (step, weight), one at least."""
        if self.schedule:
            return tuple((point.step, point.weight) for point in self.schedule)
        return ((0, 1.0 if self.weight is None else self.weight),)


def check_sources(sources: tuple[PromptSource, ...]) -> None:
    """Check that the sources have different names, and that at each step one of them is drawn from.

    Raises:
        ValueError: they do not.
    """
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two sources have the name {name!r}; give each a name of its own")
    for step in sorted({step for source in sources for step, _ in source.weights}):
        if sources and not any(_drawn_from(source.weights, step) for source in sources):
            raise ValueError(f"every source has weight 0 at step {step}; give one of them a weight there")


def _drawn_from(weights: tuple[tuple[int, float], ...], step: int) -> bool:
    after = bisect_left(weights, step, key=lambda point: point[0])
    if after < len(weights) and weights[after][0] == step:
        return weights[after][1] > 0
    return any(weight for _, weight in weights[max(0, after - 1) : after + 1])
