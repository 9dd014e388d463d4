"""Timer of a training step's phases."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal, get_args

Phase = Literal["waiting", "processing", "forward_backward", "optimiser", "publication", "checkpoint", "unaccounted"]


class StepTimer:
    """Seconds of one step by phase; time outside all phases is ``unaccounted``.

    A phase that is measured within another takes its time from it, so that all phases add up to the step.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._current: Phase = "unaccounted"
        self.restart()

    def restart(self) -> None:
        """Begin the step now. After a pause, the time measured so far does not belong to the step."""
        self.began_at = time.time()
        """Unix time, seconds."""
        self._since = self._clock()
        self._seconds: dict[Phase, float] = dict.fromkeys(get_args(Phase), 0.0)

    @contextlib.contextmanager
    def measure(self, phase: Phase) -> Iterator[None]:
        """Count the time within the block as ``phase``."""
        outer = self._switch_to(phase)
        try:
            yield
        finally:
            self._switch_to(outer)

    def _switch_to(self, phase: Phase) -> Phase:
        """Count the time since the last switch to the current phase, and return that phase."""
        now = self._clock()
        self._seconds[self._current] += now - self._since
        self._since = now
        previous, self._current = self._current, phase
        return previous

    def finish(self) -> tuple[float, dict[str, float]]:
        """Return the seconds since the step began, in total and by phase."""
        self._switch_to("unaccounted")
        return sum(self._seconds.values()), {str(phase): seconds for phase, seconds in self._seconds.items()}
