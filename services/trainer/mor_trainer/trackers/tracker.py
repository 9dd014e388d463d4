"""The seam between run control and an experiment tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mor_core.runs import RunSpec, RunState


class Tracker(Protocol):
    """A tracker's own library. Called by one thread; whatever it raises is the tracker's failure, never the run's."""

    @property
    def name(self) -> str: ...

    def begin(self, run: str, spec: RunSpec) -> None:
        """Figures of ``run`` follow. It may be known from before: run control was restarted, or the run resumed."""

    def log(self, run: str, step: int, at: float, figures: Mapping[str, float]) -> None:
        """Figures of a step; ``at`` is Unix time in seconds."""

    def rewind(self, run: str, step: int) -> None:
        """The run goes on from ``step``: what was told of later ones is of weights that are lost."""

    def end(self, run: str, state: RunState) -> None:
        """No figures follow for now."""
