"""What a run tells its history: numbered events, kept until the history has them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import Any, Literal

from mor_core.streams import Streams
from mor_core.wire import EventRecord

Kind = Literal["step", "state", "samples", "evaluation", "weights", "checkpoint", "alert", "replay"]

_KEPT = 4096
_PUBLISH_TIMEOUT_S = 30.0


def event_id(attempt: int, sequence: int) -> str:
    """Identity of an event: the worker's attempt at the run and the event's number in it."""
    return f"{attempt:06d}-{sequence:08d}"


def parse_event_id(name: str) -> tuple[int, int]:
    """Attempt and number of an event."""
    attempt, _, sequence = name.partition("-")
    return int(attempt), int(sequence)


class EventLog:
    """Events of one attempt. Sent in order; sent again when the queue server lost them; never blocks the training.

    At most 4,096 unseen events are kept: when the history is away for longer than that, the oldest are forgotten and
    the gap shows in the numbers.
    """

    def __init__(self, run: str, attempt: int) -> None:
        self._run = run
        self._attempt = attempt
        self._sequence = 0
        self._unseen: deque[EventRecord] = deque(maxlen=_KEPT)
        self._unsent: deque[EventRecord] = deque(maxlen=_KEPT)
        self._wake = asyncio.Event()
        self._sent = asyncio.Event()

    def add(self, kind: Kind, step: int, data: dict[str, Any]) -> None:
        """Queue an event. Call on the event loop's thread."""
        self._sequence += 1
        record = EventRecord(
            run=self._run,
            group_id=event_id(self._attempt, self._sequence),
            stamps={"trainer": time.time()},
            kind=kind,
            step=step,
            data=data,
        )
        self._unseen.append(record)
        self._unsent.append(record)
        self._sent.clear()
        self._wake.set()

    def seen(self, sequence: int) -> None:
        """The history holds every event up to ``sequence``."""
        while self._unseen and parse_event_id(self._unseen[0].group_id)[1] <= sequence:
            self._unseen.popleft()

    @property
    def all_seen(self) -> bool:
        """Whether the history holds every event."""
        return not self._unseen

    def resend(self) -> None:
        """The queue server lost its content: send again what the history has not confirmed."""
        self._unsent = deque(self._unseen, maxlen=_KEPT)
        self._sent.clear()
        self._wake.set()

    async def send(self, streams: Streams) -> None:
        """Send what waits, for ever; raises what the queue server raises, and may be called again then."""
        while True:
            while self._unsent:
                record = self._unsent[0]
                await streams.publish("events", record, timeout_s=_PUBLISH_TIMEOUT_S)
                if self._unsent and self._unsent[0] is record:
                    self._unsent.popleft()
            self._sent.set()
            self._wake.clear()
            if not self._unsent:
                await self._wake.wait()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every event is in the stream; whether that was in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._sent.wait()
        return not self._unsent
