"""Registry of the limits that rollout services report."""

from __future__ import annotations

import time

from mor_core.run_status import EngineLimits

_FORGOTTEN_S = 600.0
"""Age of a report after which its service is gone; services report every minute."""
_MOST = 256
"""Most entries, so that processes with random names cannot fill the memory."""


class EngineRegistry:
    """Registry in memory: after a restart of run control, a live service reports again within a minute."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, EngineLimits]] = {}

    def report(self, limits: EngineLimits) -> None:
        """Record the limits of a service."""
        self._seen.pop(limits.name, None)
        self._seen[limits.name] = (time.monotonic(), limits)
        while len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]

    def list(self) -> list[EngineLimits]:
        """List the limits of the services that reported within the last ten minutes, by name."""
        since = time.monotonic() - _FORGOTTEN_S
        return sorted((limits for at, limits in self._seen.values() if at > since), key=lambda limits: limits.name)
