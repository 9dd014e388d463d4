"""Log of a run's events: numbered, sent to run control, kept until the history has them."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal

from mor_core.errors import Invalid
from mor_core.server_clock import SERVER_CLOCK
from mor_core.streams import Streams
from mor_core.wire import EventRecord

EventKind = Literal["step", "state", "samples", "evaluation", "weights", "checkpoint", "alert", "replay"]

_EVENT_ID = re.compile(r"([0-9]{6,9})-([0-9]{8,12})")
_KEPT = 4096
"""Most events that wait for the history; hours of a run, and a few megabytes of memory."""
_CARRIED_BYTES = 32 << 20
"""Most bytes of events in a checkpoint: thousands of steps, and a small part of any checkpoint."""
_LARGE_KINDS = ("samples", "alert")
"""Events with pictures or dead letters; they are left out of a checkpoint first."""
_PUBLISH_TIMEOUT_S = 30.0
"""Seconds to wait for room in the stream; after that the group exchange logs the failure and sends again."""


def event_id(attempt: int, sequence: int) -> str:
    """Return the id of an event: the attempt at the run, and the event's number in the attempt."""
    return f"{attempt:06d}-{sequence:08d}"


def event_number(event: EventRecord) -> tuple[int, int]:
    """Return the attempt of an event, and its number in the attempt.

    Raises:
        Invalid: its id has another form.
    """
    found = _EVENT_ID.fullmatch(event.group_id)
    if found is None:
        raise Invalid(f"event id {event.group_id[:80]!r} is not attempt and number, such as 000001-00000042")
    return int(found[1]), int(found[2])


class EventLog:
    """Events of one attempt: sent in order, and again when the queue server lost them; adding one never blocks.

    At most 4,096 unseen events are kept. When the history is away for longer, the oldest are lost, the gap shows in the
    numbers, and heartbeats report it. Every method runs on the event loop's thread.
    """

    def __init__(self, run: str, attempt: int) -> None:
        self._run = run
        self._attempt = attempt
        self._sequence = 0
        self._lost = 0
        self._unseen: deque[EventRecord] = deque(maxlen=_KEPT)
        self._unsent: deque[EventRecord] = deque(maxlen=_KEPT)
        self._wake = asyncio.Event()
        self._sent = asyncio.Event()

    def add(self, kind: EventKind, step: int, data: dict[str, Any]) -> None:
        """Queue an event."""
        self._sequence += 1
        record = EventRecord(
            run=self._run,
            group_id=event_id(self._attempt, self._sequence),
            stamps={"trainer": SERVER_CLOCK.now()},
            kind=kind,
            step=step,
            data=data,
        )
        if len(self._unseen) == _KEPT:
            attempt, number = event_number(self._unseen[0])
            self._lost = number if attempt == self._attempt else self._lost
        self._unseen.append(record)
        self._unsent.append(record)
        self._sent.clear()
        self._wake.set()

    def untold(self) -> list[EventRecord]:
        """Return the events that the history has not confirmed, for a checkpoint: the newest up to 32 MB."""
        carried, room = [], _CARRIED_BYTES
        newest_first = list(reversed(self._unseen))
        for record in sorted(newest_first, key=lambda record: record.kind in _LARGE_KINDS):
            room -= len(record.model_dump_json())
            if room < 0:
                break
            carried.append(record)
        return sorted(carried, key=event_number)

    def carry(self, events: Iterable[EventRecord]) -> None:
        """Send the events that a checkpoint of an earlier attempt kept, ahead of this attempt's own.

        They keep their numbers, by which the history knows those that it has.
        """
        earlier = [event for event in events if event.run == self._run and self._is_earlier(event)]
        self._unseen = deque([*earlier, *self._unseen], maxlen=_KEPT)
        self._unsent = deque([*earlier, *self._unsent], maxlen=_KEPT)
        self._sent.clear()
        self._wake.set()

    def _is_earlier(self, event: EventRecord) -> bool:
        with contextlib.suppress(Invalid):
            return event_number(event)[0] < self._attempt
        return False

    def seen(self, sequence: int) -> None:
        """Forget the events up to ``sequence``, because the history holds them, and those of earlier attempts.

        The stream delivers in order, so that the first event of this attempt comes after all earlier ones. Events that
        wait to be sent stay: the history can only have forged ones with their numbers.
        """
        if not sequence:
            return
        unsent = self._unsent[0].group_id if self._unsent else None
        while self._unseen and self._unseen[0].group_id <= event_id(self._attempt, sequence):
            if self._unseen[0].group_id == unsent:
                break
            self._unseen.popleft()

    @property
    def lost(self) -> int | None:
        """Number of the last event that is kept no longer although the history may lack it; ``None`` for none."""
        return self._lost or None

    @property
    def all_seen(self) -> bool:
        """True once the history has every event."""
        return not self._unseen

    def resend(self) -> None:
        """Send again all events that the history has not confirmed, after the queue server lost its content."""
        self._unsent = deque(self._unseen, maxlen=_KEPT)
        self._sent.clear()
        self._wake.set()

    async def send(self, streams: Streams) -> None:
        """Send the waiting events until cancelled. May be called again after an error.

        Raises:
            RedisError: the queue server failed.
            StreamFull: the stream had no room.
        """
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

    async def drain(self) -> None:
        """Wait until every event is in the stream."""
        while self._unsent:
            await self._sent.wait()
