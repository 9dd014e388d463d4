"""Circuit breaker of one client: stops calls to a client of whose latest calls too large a share failed.

Breakers that count failures in a row never open for a client that answers every fifth call. This one keeps a sliding
window of outcomes, each a share of failure between 0 and 1:

    closed      calls pass; opens when the window holds enough calls and their mean share of failure reaches the limit
    open        no calls, for a time that doubles with each opening, is bounded, and is jittered
    half open   one call at a time, on trial; enough good ones in a row close the circuit, a bad one opens it again

The time doubles until the client has filled a whole window without an opening, so a client that answers well only
while it is on trial is called less and less. ``begin_trial`` ends it early: a client that could not be reached, and can
be again, has no reason to wait.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

CircuitState = Literal["closed", "half_open", "open"]

_JITTER = 0.2
"""Largest relative deviation of the time that a circuit stays open, so that replicas do not return together."""
_FAILED = 0.5
"""Share of failure of a call on trial from which on it counts as bad."""
_RELIABLE = 0.1
"""Largest mean share of failure in the window of a client that counts as reliable."""


class CircuitOpen(Exception):
    """The client is not called now."""


@dataclass(frozen=True)
class CircuitLimits:
    """Limits of a circuit; the router's settings ``circuit_*`` document them."""

    calls: int
    window_s: float
    least_calls: int
    failure_share: float
    open_s: float
    longest_open_s: float
    trials: int


@dataclass
class CallOutcome:
    """Outcome of one call, filled in by the caller."""

    failure: float | None = None
    """Share of the call that failed, between 0 and 1; ``None`` while it shows nothing about the client."""


class Circuit:
    """Circuit of one client, in this process."""

    def __init__(self, limits: CircuitLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._window: deque[tuple[float, float]] = deque(maxlen=limits.calls)
        self._period = 0
        """Counts the changes of state: the outcome of a call that began before the last one is ignored."""
        self._openings = 0
        """Openings since the client was last reliable over a whole window."""
        self._since_closed = 0
        self._reopens_at: float | None = None
        """Time at which trials begin; ``None`` while the circuit is closed."""
        self._on_trial = False
        self._passed = 0

    def sibling(self) -> Circuit:
        """Return a new circuit with the same limits."""
        return Circuit(self._limits, self._clock)

    @property
    def state(self) -> CircuitState:
        if self._reopens_at is None:
            return "closed"
        return "half_open" if self._clock() >= self._reopens_at else "open"

    @property
    def failure_share(self) -> float | None:
        """Mean share of failure in the window; ``None`` without enough calls."""
        while self._window and self._window[0][0] < self._clock() - self._limits.window_s:
            self._window.popleft()
        if len(self._window) < self._limits.least_calls:
            return None
        return sum(failure for _, failure in self._window) / len(self._window)

    @property
    def reliable(self) -> bool:
        """True while the circuit is closed and enough calls in the window show that the client answers."""
        share = self.failure_share
        return self.state == "closed" and share is not None and share <= _RELIABLE

    def begin_trial(self) -> None:
        """Admit calls on trial from now on, where the circuit is open."""
        if self.state == "open":
            self._reopens_at = self._clock()

    @contextmanager
    def call(self) -> Iterator[CallOutcome]:
        """Admit one call; the body states its outcome.

        Raises:
            CircuitOpen: the client is not called now, or another call is on trial.
        """
        state, period = self.state, self._period
        if state == "open":
            raise CircuitOpen("failed too often")
        if state == "half_open":
            if self._on_trial:
                raise CircuitOpen("failed too often; another call is on trial")
            self._on_trial = True
        outcome = CallOutcome()
        try:
            yield outcome
        finally:
            if period == self._period:
                self._on_trial = False
                if outcome.failure is not None:
                    self._record(outcome.failure, on_trial=state == "half_open")

    def _record(self, failure: float, *, on_trial: bool) -> None:
        if on_trial:
            self._passed = 0 if failure >= _FAILED else self._passed + 1
            if not self._passed:
                self._open()
            elif self._passed >= self._limits.trials:
                self._close()
            return
        self._window.append((self._clock(), failure))
        self._since_closed += 1
        share = self.failure_share
        if share is not None and share >= self._limits.failure_share:
            self._open()
        elif self._since_closed >= self._limits.calls:
            self._openings = 0

    def _open(self) -> None:
        wait = min(self._limits.open_s * 2.0 ** min(self._openings, 60), self._limits.longest_open_s)
        self._reopens_at = self._clock() + wait * random.uniform(1 - _JITTER, 1 + _JITTER)
        self._openings += 1
        self._change()

    def _close(self) -> None:
        self._reopens_at = None
        self._change()

    def _change(self) -> None:
        self._period += 1
        self._window.clear()
        self._since_closed = self._passed = 0
        self._on_trial = False
