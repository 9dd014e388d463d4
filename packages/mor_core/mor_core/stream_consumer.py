"""Reading side of the streams of one run: entries are read, leased, and forwarded, settled or given up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeAlias, TypeVar

import structlog
from redis.exceptions import RedisError, ResponseError

from mor_core.bounded_reads import Oversized, call_bounded
from mor_core.bounded_replies import OversizedReply, replies_up_to
from mor_core.errors import Invalid, LeaseLost, StreamFull
from mor_core.failures import describe_failure
from mor_core.stored import LEFTOVER_S
from mor_core.streams import FIELD, LARGEST_RECORD, RECORD_TYPES, RECORDS, Streams, oldest_entry
from mor_core.tasks import stop
from mor_core.wire import (
    DeadLetter,
    Record,
    StageName,
    StreamName,
)

R = TypeVar("R", bound=Record)
Payload: TypeAlias = bytes | Oversized
"""Record of an entry, before it is parsed."""

_LONGEST_LETTER = 1 << 20
"""Bytes of an unreadable record that its dead letter keeps: enough to find the fault."""
_MOST_READ = 32
"""Entries of one read, so that the largest records together take half a gigabyte."""
_MOST_COUNTED = 1 << 30
"""Largest number of deliveries that can be genuine: one a second for decades."""
_DEAD_TIMEOUT_S = 30.0
"""Longest wait for room among the dead letters, seconds: the trainer empties them at every look at its streams."""
_ENVELOPE_BYTES = 64 << 10
"""Room for the names of key and field, and an entry's id, around a record."""
_LONGEST_BLOCK_S = 5.0
"""Longest blocking read, seconds: well below the socket's time limit."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Entry(Generic[R]):
    """Record that a consumer holds."""

    id: str
    record: R
    deliveries: int
    """Number of deliveries, this one included; more than one after a failure or a consumer's death."""


class Consumer(Generic[R]):
    """Consumer of one stream: reads entries, leases them, and forwards, settles or gives up each.

    On leaving its context, another consumer can take at once every entry that this one still holds.
    """

    def __init__(self, streams: Streams, stream: StreamName, stage: StageName, lease_s: float) -> None:
        self._streams = streams
        self._redis = streams.redis
        self._stream: StreamName = stream
        self._key = streams.key(stream)
        self._stage: StageName = stage
        self._lease_ms = max(1, round(lease_s * 1000))
        self._type = RECORD_TYPES[stream]
        self._claim_from: Any = "0-0"
        """Entry at which the next look for those of silent consumers starts; one look sees a part of the stream."""
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._passed_over: bytes | None = None
        """Oldest entry at the last empty read, if nobody held it."""
        self._leased: dict[str, object] = {}
        """Entries in work here, each with the mark of its ``leased`` block. Their lease may end while the event loop
        stands still; they are not claimed again."""
        self._new_first = False
        """True after a read that returned entries of silent consumers: the next one prefers new entries, so that
        entries that are postponed again and again hold up none."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RedisError):  # the entries are then free when their lease ends
            held = await self._redis.xpending_range(
                self._key, self._stage, min="-", max="+", count=self._streams.bound, consumername=self.name
            )
            if held:
                await self._set_idle([item["message_id"] for item in held], idle_ms=self._lease_ms)

    async def _set_idle(self, ids: Sequence[Any], idle_ms: int) -> None:
        """Set the idle time of entries that this consumer holds."""
        await self._redis.xclaim(self._key, self._stage, self.name, 0, list(ids), idle=idle_ms, justid=True)

    async def read(self, count: int, block_s: float) -> list[Entry[R]]:
        """Return up to ``count`` entries: those of silent consumers and postponed ones, else new ones, waiting up to
        ``block_s`` for them.

        An entry that is no valid record goes to the dead letters at once.
        """
        count = min(count, _MOST_READ)
        try:
            found = await self._read(count, ">") if self._new_first else []
            self._new_first = False
            if not found:
                claimed = await self._claim(count)
                self._new_first = bool(claimed)
                if claimed:
                    return claimed
                found = await self._read(count, ">") or await self._wait_for_new(block_s)
            if not found:
                await self._return_to_passed_over()
        except ResponseError as error:
            if "NOGROUP" not in str(error) and not await self._streams.mend(self._stream, error):
                raise
            await self._create_group()
            return []
        return await self._parse([(entry_id, payload, 1) for entry_id, payload in found])

    async def _read(self, count: int, after: Literal[">", "0"]) -> list[tuple[bytes, Payload]]:
        """Return entries that are there, without waiting: new ones, or after "0" those that this consumer holds."""
        group = ("GROUP", self._stage, self.name)
        command = ("XREADGROUP", *group, "COUNT", count, "STREAMS", self._key, after)
        reply = await call_bounded(self._redis.evalsha, self._redis, LARGEST_RECORD, self._key, *command)
        return [pair for _, entries in reply or [] for pair in _payloads(entries)]

    async def _wait_for_new(self, block_s: float) -> list[tuple[bytes, Payload]]:
        """Return the next new entry; none after ``block_s``. A script cannot wait, so the server does not measure it,
        and it comes alone."""
        block_ms = max(1, round(min(block_s, _LONGEST_BLOCK_S) * 1000))
        new: Any = {self._key: ">"}
        try:
            with replies_up_to(LARGEST_RECORD + _ENVELOPE_BYTES):
                reply: Any = await self._redis.xreadgroup(self._stage, self.name, new, count=1, block=block_ms)
        except OversizedReply:  # this consumer holds the entry now, or finds it once its lease ends
            held = await self._read(_MOST_READ, "0")
            return [(entry_id, payload) for entry_id, payload in held if isinstance(payload, Oversized)]
        return [
            (entry_id, fields.get(FIELD.encode(), b"")) for _, entries in reply or [] for entry_id, fields in entries
        ]

    async def _create_group(self) -> None:
        with contextlib.suppress(ResponseError):  # BUSYGROUP: another consumer was first
            await self._redis.xgroup_create(self._key, self._stage, id="0", mkstream=True)
            await self._redis.expire(self._key, LEFTOVER_S)

    async def _return_to_passed_over(self) -> None:
        """Set the consumer group back to the stream's start if its position lies behind an entry that nobody holds.

        Settled entries are deleted, so such an entry was never read: somebody created or moved the group. It is one
        that is the oldest at two looks with an empty read between them, so that a new entry is none.
        """
        oldest = await oldest_entry(self._redis, self._key)
        if oldest and await self._redis.xpending_range(self._key, self._stage, min=oldest, max=oldest, count=1):
            oldest = None
        if oldest and oldest == self._passed_over:
            RECORDS[self._stream].refuse(self._key, "the consumer group passed over entries; it begins again")
            await self._redis.xgroup_setid(self._key, self._stage, "0")
        self._passed_over = oldest

    async def _claim(self, count: int) -> list[Entry[R]]:
        command = ("XAUTOCLAIM", self._key, self._stage, self.name, self._lease_ms, self._claim_from, "COUNT", count)
        reply = await call_bounded(self._redis.evalsha, self._redis, LARGEST_RECORD, self._key, *command)
        self._claim_from = reply[0]  # "0-0" once the end is reached
        found = _payloads(reply[1])
        if not found:
            return []
        pending = await self._redis.xpending_range(  # postponed entries may lie between those found
            self._key, self._stage, min=found[0][0], max=found[-1][0], count=self._streams.bound, consumername=self.name
        )
        ids = {entry_id for entry_id, _ in found}
        deliveries: dict[Any, int] = {
            item["message_id"]: int(item["times_delivered"]) for item in pending if item["message_id"] in ids
        }
        for entry_id in [name for name, count in deliveries.items() if not 0 < count <= _MOST_COUNTED]:
            deliveries[entry_id] = 2  # as after one failure; otherwise the count, which another wrote, would stay
            await self._set_deliveries(entry_id, 2)
        own = [entry_id for entry_id, _ in found if entry_id.decode() in self._leased]
        for entry_id in own:
            await self._set_deliveries(entry_id, deliveries.get(entry_id, 2) - 1)
        claimed = [(entry_id, payload) for entry_id, payload in found if entry_id not in own]
        if not claimed:
            return []
        if taken := sum(deliveries.get(entry_id, 2) > 1 for entry_id, _ in claimed):  # the others were postponed
            log.info("took over entries of a silent consumer", stream=self._key, entries=taken)
        return await self._parse([(entry_id, payload, deliveries.get(entry_id, 2)) for entry_id, payload in claimed])

    async def _parse(self, raw: Sequence[tuple[bytes, Payload, int]]) -> list[Entry[R]]:
        entries: list[Entry[R]] = []
        for entry_id, payload, deliveries in raw:
            try:
                record: Any = self._record(payload)
            except Exception as error:  # whatever a validator raises, the record is at fault
                reason = describe_failure(error)
                RECORDS[self._stream].refuse(entry_id, reason)
                readable = payload[:_LONGEST_LETTER].decode(errors="replace") if isinstance(payload, bytes) else ""
                await self._bury_unreadable(entry_id.decode(), readable, reason, deliveries)
                continue
            entries.append(Entry(entry_id.decode(), record, deliveries))
        return entries

    def _record(self, payload: Payload) -> Record:
        """Parse a record.

        Raises:
            ValueError: it does not fit.
            Invalid: it is too long, or belongs to another run.
        """
        size = payload.bytes if isinstance(payload, Oversized) else len(payload)
        if isinstance(payload, Oversized) or size > LARGEST_RECORD:
            raise Invalid(f"{size} bytes, at most {LARGEST_RECORD} are read")
        record = self._type.model_validate_json(payload)
        if record.run != self._streams.run:
            raise Invalid(f"a record of run {record.run} is in the stream of run {self._streams.run}")
        return record

    async def _bury_unreadable(self, entry_id: str, payload: str, reason: str, deliveries: int) -> None:
        """Move an entry to the dead letters. If they are full, it stays, and the entries beside it are still read."""
        try:
            await self._bury(entry_id, payload, reason, deliveries, {}, timeout_s=0)
        except StreamFull as error:
            log.warning("an unreadable record stays in the stream", stream=self._key, entry=entry_id, error=str(error))

    @contextlib.asynccontextmanager
    async def leased(self, entries: Sequence[Entry[R]]) -> AsyncIterator[None]:
        """Renew the lease on ``entries`` while the body runs, every third of its time.

        While that fails, another consumer may take the entries over; the first one to forward an entry then settles it.
        """

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._lease_ms / 3000)
                held = [entry.id for entry in entries if self._leased.get(entry.id) is mark]
                try:
                    if held:
                        await self._set_idle(held, idle_ms=0)
                except RedisError as error:  # the server may return before the work is done
                    log.warning(
                        "a lease cannot be renewed",
                        stream=self._key,
                        entries=len(entries),
                        error=describe_failure(error),
                    )

        mark = object()
        self._leased |= dict.fromkeys((entry.id for entry in entries), mark)
        task = asyncio.create_task(renew(), name=f"lease {self._key}")
        try:
            yield
        finally:
            self._leased = {name: other for name, other in self._leased.items() if other is not mark}
            await stop([task])

    async def forward(self, entry: Entry[R], to: StreamName, record: Record, *, timeout_s: float) -> None:
        """Write ``record`` to the next stream and settle ``entry``, both or neither.

        Raises:
            StreamFull: the next stream had no room within ``timeout_s``; this consumer still holds the entry.
            LeaseLost: another consumer has settled the entry; ``record`` was not written.
        """
        payload = record.model_dump_json()
        destination = self._streams.key(to)

        async def attempt() -> int:
            args: list[str | int] = [self._stage, entry.id, self._streams.bound, payload, LEFTOVER_S]
            return int(await self._streams.forward_script(keys=[self._key, destination], args=args))

        if await self._streams.until_admitted(attempt, to, timeout_s) < 0:
            raise LeaseLost(f"{self._key} entry {entry.id} was settled by another consumer")

    async def postpone(self, entry: Entry[R], pause_s: float) -> None:
        """Have ``entry`` read again after ``pause_s``, and the lease at the latest, by any consumer.

        Meanwhile it takes no memory here, and this delivery does not count.
        """
        self._leased.pop(entry.id, None)
        idle_ms = max(0, self._lease_ms - round(1000 * pause_s))
        await self._redis.xclaim(
            self._key, self._stage, self.name, 0, [entry.id],
            idle=idle_ms, retrycount=max(0, entry.deliveries - 1), justid=True,
        )  # fmt: skip

    async def end_pauses(self, ids: Sequence[str]) -> None:
        """Have postponed entries read again at once; those that others have taken stay with them."""
        held = await self._redis.xpending_range(
            self._key, self._stage, min="-", max="+", count=self._streams.bound, consumername=self.name
        )
        names = {bytes(item["message_id"]).decode() for item in held}  # type: ignore[arg-type]
        paused = names.intersection(ids) - self._leased.keys()
        if paused:
            await self._set_idle(sorted(paused), idle_ms=self._lease_ms)

    async def uncount(self, entry: Entry[R]) -> None:
        """Take back the count of this delivery, after a failure that is not the entry's own."""
        await self._set_deliveries(entry.id, entry.deliveries - 1)

    async def _set_deliveries(self, entry_id: str | bytes, deliveries: int) -> None:
        """Set the number of deliveries of an entry that this consumer holds."""
        await self._redis.xclaim(self._key, self._stage, self.name, 0, [entry_id], retrycount=deliveries, justid=True)

    async def settle(self, entry: Entry[R]) -> None:
        """Remove an entry that needs no successor."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xack(self._key, self._stage, entry.id)
            pipe.xdel(self._key, entry.id)
            await pipe.execute()

    async def give_up(self, entry: Entry[R], reason: str, *, attempts: int | None = None) -> None:
        """Move an entry to the dead letters with the reason."""
        await self._bury(
            entry.id,
            entry.record.model_dump_json(),
            reason,
            attempts or entry.deliveries,
            {"group_id": entry.record.group_id, "trace": entry.record.trace, "stamps": entry.record.stamps},
        )

    async def _bury(
        self,
        entry_id: str,
        payload: str,
        reason: str,
        attempts: int,
        identity: dict[str, Any],
        *,
        timeout_s: float = _DEAD_TIMEOUT_S,
    ) -> None:
        letter = DeadLetter(
            run=self._streams.run,
            stage=self._stage,
            stream=self._stream,
            reason=reason[:2000].encode(errors="replace").decode(),  # names of files may have half a character
            attempts=attempts,
            record=payload,
            **{"group_id": "unreadable", **identity},
        )
        log.warning("dead letter", stream=self._key, group=letter.group_id, reason=letter.reason)
        script = self._streams.forward_script

        async def attempt() -> int:
            payload = letter.model_dump_json()
            args: list[str | int] = [self._stage, entry_id, self._streams.bound, payload, LEFTOVER_S]
            return int(await script(keys=[self._key, self._streams.key("dead")], args=args))

        await self._streams.until_admitted(attempt, "dead", timeout_s)


def _payloads(entries: Any) -> list[tuple[bytes, Payload]]:
    """Return id and record of each entry as a script returns it: the id, and fields and values in turn."""
    found = []
    for entry_id, flat in entries:
        fields = dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}
        if fields:
            found.append((entry_id, fields.get(FIELD.encode(), b"")))
    return found
