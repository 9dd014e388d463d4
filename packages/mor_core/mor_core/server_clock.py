"""Clock of the queue server, by which processes on different machines compare times.

Clocks of machines differ, and jump when somebody sets them. A time that another process compares, such as that of an
announcement, is therefore taken from the server that all of them use. Between two looks at the server the time goes on
by this process's monotonic clock, which no change of the system's clock moves.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
from prometheus_client import Gauge

if TYPE_CHECKING:
    from redis.asyncio import Redis

TOLERATED_SKEW_S = 30.0
"""Difference of the clocks that is no problem yet, seconds: people who compare logs or charts hardly notice it."""
_LONGEST_ROUND_TRIP_S = 1.0
"""Longest exchange that sets the clock anew, seconds; half of it is the error."""
_WARN_EVERY_S = 600.0
"""Seconds between warnings of the same difference."""

CLOCK_SKEW = Gauge(
    "mor_clock_skew_seconds", "System clock of this process's machine minus the clock of the queue server"
)

log = structlog.get_logger(__name__)


class ServerClock:
    """Clock of one queue server. Until the server was asked, it is the system's clock."""

    def __init__(self) -> None:
        self._offset: float | None = None
        """Server time minus monotonic time."""
        self._warned_at: float | None = None

    def now(self) -> float:
        """Return the server's Unix time in seconds."""
        return time.time() if self._offset is None else time.monotonic() + self._offset

    async def read(self, redis: Redis) -> float:
        """Ask the server for its time, and return it as Unix time in seconds.

        Raises:
            RedisError: the server failed.
        """
        asked = time.monotonic()
        seconds, microseconds = await redis.time()
        answered = time.monotonic()
        if self._offset is None or answered - asked <= _LONGEST_ROUND_TRIP_S:
            self._offset = seconds + microseconds / 1e6 - (asked + answered) / 2
            self._compare()
        return self.now()

    def _compare(self) -> None:
        """Report how far the system's clock is off."""
        skew, now = time.time() - self.now(), time.monotonic()
        CLOCK_SKEW.set(skew)
        due = self._warned_at is None or now - self._warned_at >= _WARN_EVERY_S
        if abs(skew) > TOLERATED_SKEW_S and due:
            self._warned_at = now
            log.warning(
                "the clock of this machine differs from that of the queue server; synchronise both with NTP (chrony, "
                "systemd-timesyncd). Runs go on, but times of different services do not fit together",
                ahead_s=round(skew, 1),
            )


SERVER_CLOCK = ServerClock()
"""Clock of the queue server of this process's ``MOR_REDIS_URL``."""
