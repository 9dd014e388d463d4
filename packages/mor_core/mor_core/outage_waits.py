"""Waits of a run's groups for an outage to end, and how a stage tells the run's trainer of them.

An outage costs a group no attempt: its entry stays in the stream and is read again after a pause, while other groups
pass. Each process writes what its groups wait for into a hash of the run (``mor:{RUN}:waits``), which the trainer turns
into an alert. Nothing there is needed for the work: a line that is not renewed is ignored, and the key expires.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field
from redis.asyncio import Redis
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mor_core.server_clock import SERVER_CLOCK
from mor_core.stored import StoredEntries
from mor_core.streams import key
from mor_core.wire import Count, StageName, Wire

WAITS = "waits"
"""Key of a run with the waits of its stages."""
TELL_S = 2.0
"""Seconds between two lines of a process that waits: the trainer's alert is that late."""
_CURRENT_S = 15.0
"""Age at which a line no longer counts, seconds: its process ended without a word."""
_KEY_S = 60
"""Seconds after the last line until the key is deleted."""
_FIRST_PAUSE_S = 0.5
"""First mean pause of an entry, seconds."""
_LONGEST_PAUSE_S = 4.0
"""Longest mean pause, seconds: a run goes on that soon after an outage."""
_LATE_S = 0.05
"""Seconds for which the end of a pause is read late: the queue server counts it, from when it was told of it."""
_MOST_REASONS = 32
"""Reasons of one line; an alert lists a few."""
_LONGEST_REASON = 300
"""Characters of one reason."""

_AWAY = (
    RedisConnectionError,
    RedisTimeoutError,
    ReadOnlyError,
    OutOfMemoryError,
    ClusterDownError,
    MasterDownError,
    TryAgainError,
)
_UNABLE = ("MISCONF", "NOREPLICAS", "LOADING", "BUSY ")
"""Begin of the errors of a server that takes no writes now: no disk, no replica, still reading, a script that runs."""

_WAITS = StoredEntries(WAITS, largest=64 << 10)


def is_server_outage(error: RedisError) -> bool:
    """Return whether the queue server is at fault for an error, and not what was sent or is stored there."""
    return isinstance(error, _AWAY) or str(error).startswith(_UNABLE)


class StageWait(Wire):
    """Wait of a run's groups in one process."""

    stage: StageName
    groups: Count
    """Groups that this process holds back; 0 where it reads none because it can work on none."""
    missing: Annotated[dict[str, str], Field(max_length=_MOST_REASONS)]
    """Reason for each client or part that is away, by its name."""
    renewed_at: float
    """Unix time of the queue server, seconds."""


@dataclass
class EntryWait:
    """Wait of one entry."""

    began_at: float = field(default_factory=time.monotonic)
    pauses: int = 0
    due_at: float = 0.0
    """Monotonic time from which the entry may be read again."""
    missing: Mapping[str, str] = field(default_factory=dict)
    uncounted: int = 0
    """Deliveries that ended in an outage while their count could not be taken back."""


class OutageWaits:
    """Waits of the entries of one run in this process."""

    def __init__(self, stage: StageName, forget_after_s: float, most: int) -> None:
        """``forget_after_s``: seconds after its pause until an entry that was not read again is another consumer's.
        ``most``: entries that a stream can hold."""
        self._stage: StageName = stage
        self._forget_after_s = forget_after_s
        self._most = most
        self._entries: dict[str, EntryWait] = {}
        self.blocked: Mapping[str, str] = {}
        """Reasons for which no entry is read at all."""

    def of(self, entry_id: str) -> EntryWait:
        """Return the wait of an entry, a new one where it has none."""
        return self._entries.get(entry_id) or EntryWait()

    def next_pause_s(self, entry_id: str) -> float:
        """Draw the next pause of an entry, seconds: doubled each time, bounded, and jittered."""
        mean_s = _FIRST_PAUSE_S * 2.0 ** min(self.of(entry_id).pauses, 20)
        return random.uniform(0.5, 1.5) * min(mean_s, _LONGEST_PAUSE_S)

    def add(self, entry_id: str, wait: EntryWait) -> None:
        """Remember a wait that goes on."""
        self._entries.pop(entry_id, None)
        self._entries[entry_id] = wait
        now = time.monotonic()
        for other in [name for name, one in self._entries.items() if one.due_at + self._forget_after_s < now]:
            del self._entries[other]
        while len(self._entries) > self._most:
            del self._entries[next(iter(self._entries))]

    def forget(self, entry_id: str) -> None:
        """End the wait of an entry."""
        self._entries.pop(entry_id, None)

    @property
    def groups(self) -> int:
        """Number of groups that wait for an outage to end."""
        return len(self._current())

    def _current(self) -> list[EntryWait]:
        horizon = time.monotonic() - self._forget_after_s
        return [wait for wait in self._entries.values() if wait.missing and wait.due_at > horizon]

    @property
    def missing(self) -> set[str]:
        """Clients and parts that the entries wait for."""
        return {name for wait in self._current() for name in wait.missing}

    def end_pauses(self, back: Collection[str]) -> list[str]:
        """Make the entries due that wait for one of ``back``; return them."""
        found = [name for name, wait in self._entries.items() if not wait.missing.keys().isdisjoint(back)]
        for name in found:
            self._entries[name].due_at = time.monotonic()
        return found

    @property
    def due_in_s(self) -> float | None:
        """Seconds until the next entry may be read again; ``None`` while none waits for its time.

        An entry whose time has come is in work, here or with another consumer, and keeps no read short.
        """
        now = time.monotonic()
        left_s = (wait.due_at + _LATE_S - now for wait in self._entries.values())
        return min((seconds for seconds in left_s if seconds > 0), default=None)

    def summary(self) -> StageWait | None:
        """Return what the groups wait for; ``None`` while none waits."""
        waits = self._current()
        missing = {name: reason for wait in waits for name, reason in wait.missing.items()} | dict(self.blocked)
        if not missing:
            return None
        shown = {name: reason[:_LONGEST_REASON] for name, reason in list(missing.items())[:_MOST_REASONS]}
        return StageWait(stage=self._stage, groups=len(waits), missing=shown, renewed_at=SERVER_CLOCK.now())


async def tell(redis: Redis, run: str, process: str, wait: StageWait | None) -> None:
    """Write what the groups of a run wait for in a process; ``None``: they wait for nothing."""
    name = key(run, WAITS)
    if wait is None:
        await redis.hdel(name, process)
        return
    content = wait.model_dump_json()
    await _WAITS.write(redis, {name: "hash"}, lambda: redis.hset(name, process, content))
    await redis.expire(name, _KEY_S)


async def read_waits(redis: Redis, run: str) -> list[StageWait]:
    """Return the present waits of a run's groups.

    Raises:
        RedisError: the server failed.
    """
    name = key(run, WAITS)
    nothing: dict[bytes, Any] = {}
    found = await _WAITS.read(name, _WAITS.fetch_hash(redis, name), nothing)
    now = SERVER_CLOCK.now()
    lines = _WAITS.parse_list(found.values(), lambda line: StageWait.model_validate_json(line, extra="ignore"))
    return [line for line in lines if abs(now - line.renewed_at) < _CURRENT_S]
