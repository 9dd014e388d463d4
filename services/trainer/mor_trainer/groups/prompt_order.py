"""Order in which the prompts of a run are drawn: a pure function of the number of a draw.

A draw takes a source, as its weight says (``algorithm/source_sequence.py``), and of that source the next row. Each pass
over a source, its *epoch*, draws every row once: shuffled by the seed, or in the order of the file.
"""

from __future__ import annotations

import functools
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from mor_core.prompt_sources import WeightPoints
from mor_core.runs import RunSpec

from mor_trainer.algorithm.source_sequence import SourceSequence

_CACHED_EPOCHS = 4
"""Shuffled epochs of a source that are kept: groups under way are of two, dropped ones of any."""


@dataclass(frozen=True)
class DrawnSource:
    """Source of a run, and how its rows are drawn."""

    name: str
    """Empty for the one file of a run without ``sources``."""
    rows: int
    weights: WeightPoints = ((0, 1.0),)
    shuffled: bool = True


class DrawnPrompt(NamedTuple):
    """Prompt of a draw."""

    source: int
    epoch: int
    """Earlier passes over the source."""
    row: int
    """Row among those of all sources, one source after the other."""


class PromptOrder:
    """Order of the prompts of one run. Several threads may read it."""

    def __init__(self, sources: Sequence[DrawnSource], *, seed: int, draws_per_step: int) -> None:
        """Initialise the order; each source has a row. ``draws_per_step``: draws after which the weights are those of
        the next step."""
        self.sources = tuple(sources)
        self._seed = seed
        self._offsets = [0, *accumulate(source.rows for source in self.sources)]
        self._sequence = SourceSequence([source.weights for source in self.sources], draws_per_step)
        self._shuffled = functools.lru_cache(maxsize=_CACHED_EPOCHS * len(self.sources))(self._shuffle)

    @classmethod
    def of_run(cls, spec: RunSpec, rows: Sequence[int]) -> PromptOrder:
        """Return the order of a run with so many ``rows`` in each source."""
        if spec.sources:
            sources = [
                DrawnSource(source.name, count, source.weights, shuffled=source.order == "shuffled")
                for source, count in zip(spec.sources, rows, strict=True)
            ]
        else:
            sources = [DrawnSource("", rows[0])]
        return cls(sources, seed=spec.seed, draws_per_step=spec.groups_per_step)

    @property
    def rows(self) -> int:
        """Rows of all sources."""
        return self._offsets[-1]

    @property
    def rows_by_source(self) -> dict[str, int]:
        """Rows of each source by name; empty for a run without ``sources``."""
        return {source.name: source.rows for source in self.sources if source.name}

    def draw(self, number: int) -> DrawnPrompt:
        """Return the prompt of a draw."""
        source = self._sequence.source(number)
        epoch, position = divmod(self._sequence.count(source, number), self.sources[source].rows)
        if self.sources[source].shuffled:
            position = self._shuffled(source, epoch)[position]
        return DrawnPrompt(source, epoch, self._offsets[source] + position)

    def drawn(self, source: int, draws: int) -> int:
        """Return how many of the first ``draws`` draws are of a source."""
        return self._sequence.count(source, draws)

    def expected(self, source: int, draws: int) -> float:
        """Return how many of the first ``draws`` draws should be of a source by its weights."""
        return self._sequence.expected(source, draws)

    def epochs(self, source: int, draws: int) -> float:
        """Return how often the first ``draws`` draws pass over a source."""
        return self.drawn(source, draws) / self.sources[source].rows

    def _shuffle(self, source: int, epoch: int) -> Sequence[int]:
        """Return the positions of a source's rows in the order of an epoch."""
        name = self.sources[source].name
        order = array("I", range(self.sources[source].rows))
        random.Random(f"{self._seed}/{name}/{epoch}" if name else f"{self._seed}/{epoch}").shuffle(order)
        return order
