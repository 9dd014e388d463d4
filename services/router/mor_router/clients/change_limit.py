"""Limit on how often a client's changes are recorded: it may serve another model or card at each call."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

Verdict = Literal["record", "record the last one", "drop"]

_MOST_CLIENTS = 4096
"""Clients that are remembered; above it the one whose last change is oldest is forgotten."""


class ChangeLimit:
    """At most ``most`` changes of each client within ``period_s``, in this process."""

    def __init__(self, most: int, period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._period_s = period_s
        self._clock = clock
        self._changes: dict[str, deque[float]] = {}

    def take(self, client: str) -> Verdict:
        """Count a change and say whether to record it; after the last one that is, the next are dropped."""
        now = self._clock()
        times = self._changes.pop(client, deque(maxlen=self._most))
        self._changes[client] = times
        if len(self._changes) > _MOST_CLIENTS:
            del self._changes[next(iter(self._changes))]
        while times and times[0] <= now - self._period_s:
            times.popleft()
        if len(times) >= self._most:
            return "drop"
        times.append(now)
        return "record the last one" if len(times) == self._most else "record"
