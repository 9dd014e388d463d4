"""Interface of an experiment tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mor_core.runs import RunSpec, RunState


class Tracker(Protocol):
    """Experiment tracker, called by one thread; whatever it raises is the tracker's failure, never the run's."""

    @property
    def name(self) -> str: ...

    def begin(self, run: str, spec: RunSpec) -> None:
        """Prepare for figures of ``run``.

        The tracker may know the run already: run control was restarted, or the run resumed.
        """

    def log(self, run: str, step: int, at: float, figures: Mapping[str, float]) -> None:
        """Store the figures of a step; ``at`` is Unix time in seconds."""

    def rewind(self, run: str, step: int) -> None:
        """Mark the figures after ``step`` as lost: the run continues from there."""

    def end(self, run: str, state: RunState) -> None:
        """Close the run; it may begin again later."""
