"""Versions that engines cannot use: when the policy is published again, and what becomes of the groups meanwhile.

An engine refuses a version whose published files are damaged or gone, or holds a newer one of a lost lineage. The same
policy is then published as the next version. The groups wait for it, which costs them no attempt; where other engines
work, they are issued again sooner.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from mor_core.errors import Unavailable

MOST_AHEAD = 1_000_000
"""Versions by which an engine can be ahead: more than all attempts at a run publish. A larger number is a fault."""
_MOST_IN_VAIN = 4
"""Publications after which the run fails if no engine has returned a group since the first report."""
_PAUSE_S = 5.0
"""Pause after the first publication, seconds, doubled with each further one: the download of a version takes less."""
_LONGEST_PAUSE_S = 600.0
"""Longest pause, seconds: an engine that reports without reason makes the trainer write files this often at most."""
_CALM_S = 1800.0
"""Seconds without a publication after which the next report is the first of its kind again."""
_AGAIN_S = 5.0
"""Seconds after which a group goes to another engine, if one works."""


@dataclass(frozen=True)
class RepublishRequest:
    """Request to publish the policy again."""

    above: int
    """The new version's number must be larger."""
    reason: str


class UnusableVersions:
    """Reports of versions that an engine cannot use, and the groups that wait because of them."""

    def __init__(self, issue_again: Callable[[str], None], last_arrival: Callable[[], float]) -> None:
        """``last_arrival`` returns the monotonic time at which a group last came back."""
        self._issue_again = issue_again
        self._last_arrival = last_arrival
        self._waiting: dict[str, tuple[int, float]] = {}
        """Group -> the version that was no use for it, and the time of the report."""
        self._published = -1
        self._request: RepublishRequest | None = None
        self._first_report = self._last_publication = -math.inf
        self._publications = 0
        """Publications since the first report, after which the pauses grow."""

    def report(self, group_id: str, version: int, reason: str) -> None:
        """Let a group wait that came back because an engine cannot use ``version``, or is ahead with it."""
        now = time.monotonic()
        self._waiting[group_id] = (version, now)
        if version < self._published:
            return
        if now > self._last_publication + _CALM_S:
            self._publications, self._first_report = 0, now
        self._request = RepublishRequest(max(version, self._published), reason)

    def due(self) -> RepublishRequest | None:
        """Return the request for a publication once its time has come; it is done with then.

        Raises:
            Unavailable: several publications were no use to any engine.
        """
        now, request = time.monotonic(), self._request
        if request is None:
            return None
        if self._publications >= _MOST_IN_VAIN and self._last_arrival() < self._first_report:
            raise Unavailable(
                f"the weights were published again {self._publications} times, and no engine can use them: "
                f"{request.reason}. Check that the rollout service reaches this run's run control (MOR_CONTROL_URL), "
                "that both have the same MOR_RUNS_DIR, and that its disk is sound; then resume the run"
            )
        pause = min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** (self._publications - 1)) if self._publications else 0.0
        if now < self._last_publication + pause:
            return None
        self._request, self._last_publication = None, now
        self._publications += 1
        return request

    def published(self, version: int) -> None:
        """Record that ``version`` is published; groups that waited for it are issued again."""
        self._published = version
        if self._request is not None and self._request.above < version:
            self._request = None
        self.release()

    def release(self) -> None:
        """Issue groups again whose wait is over."""
        now, arrival = time.monotonic(), self._last_arrival()
        for group_id, (version, since) in list(self._waiting.items()):
            if version < self._published or (now > since + _AGAIN_S and arrival > since):
                del self._waiting[group_id]
                self._issue_again(group_id)
