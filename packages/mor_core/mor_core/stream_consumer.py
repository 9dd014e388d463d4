"""Reading side of the streams of one run: entries are read, leased, and forwarded, settled or given up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import structlog
from redis.exceptions import RedisError, ResponseError

from mor_core.bounded_reads import Oversized, call_bounded
from mor_core.bounded_replies import OversizedReply, replies_up_to
from mor_core.entry_leases import EntryLeases, Payload, payloads
from mor_core.errors import Invalid, LeaseLost, StreamFull
from mor_core.failures import describe_failure
from mor_core.fence import FENCED, REFUSED, UNFENCED, superseded
from mor_core.stale_leases import StaleLeases
from mor_core.stored import LEFTOVER_S
from mor_core.streams import FIELD, LARGEST_RECORD, RECORD_TYPES, RECORDS, Streams, oldest_entry
from mor_core.wire import (
    UNREADABLE,
    DeadLetter,
    Record,
    StageName,
    StreamName,
    issuer_of,
)

R = TypeVar("R", bound=Record)

_LONGEST_LETTER = 1 << 20
"""Bytes of an unreadable record that its dead letter keeps: enough to find the fault."""
_MOST_READ = 32
"""Entries of one read, so that the largest records together take half a gigabyte."""
_DEAD_TIMEOUT_S = 30.0
"""Longest wait for room among the dead letters, seconds: the trainer empties them at every look at its streams."""
_ENVELOPE_BYTES = 64 << 10
"""Room for the names of key and field, and an entry's id, around a record."""
_LONGEST_BLOCK_S = 5.0
"""Longest blocking read, seconds: well below the socket's time limit."""
_LATE_S = 2.0
"""Seconds by which a blocking read may end late. The server ends it by its system clock: an hour late if that is set
back by an hour meanwhile."""

# KEYS: stream, newest attempt. ARGV: consumer group, entry id, attempt.
_SETTLE = f"""{FENCED}
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
return 1
"""

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
        self._type = RECORD_TYPES[stream]
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._leases = EntryLeases(
            self._redis, self._key, stage, consumer=self.name, lease_s=lease_s, most=streams.bound
        )
        self._stale_leases = StaleLeases(self._redis, self._key, stage, lease_s)
        self._passed_over: bytes | None = None
        """Oldest entry at the last empty read, if nobody held it."""
        self._settle_script = self._redis.register_script(_SETTLE)
        self._new_first = False
        """True after a read that returned entries of silent consumers: the next one prefers new entries, so that
        entries that are postponed again and again hold up none."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RedisError):  # the entries are then free when their lease ends
            await self._leases.end_all()

    async def read(self, count: int, block_s: float) -> list[Entry[R]]:
        """Return up to ``count`` entries: those of silent consumers and postponed ones, else new ones, waiting up to
        ``block_s`` for them.

        An entry that is no valid record goes to the dead letters at once.

        Raises:
            Superseded: this is the consumer of an attempt at the run that has lost its lease.
        """
        if self._streams.fence is not None:
            self._streams.fence.check()
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
                await self._stale_leases.end(self.name)
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
        return [pair for _, entries in reply or [] for pair in payloads(entries)]

    async def _wait_for_new(self, block_s: float) -> list[tuple[bytes, Payload]]:
        """Return the next new entry; none after ``block_s``. A script cannot wait, so the server does not measure it,
        and it comes alone."""
        block_s = min(block_s, _LONGEST_BLOCK_S)
        block_ms = max(1, round(block_s * 1000))
        new: Any = {self._key: ">"}
        try:
            async with asyncio.timeout(block_s + _LATE_S):
                with replies_up_to(LARGEST_RECORD + _ENVELOPE_BYTES):
                    reply: Any = await self._redis.xreadgroup(self._stage, self.name, new, count=1, block=block_ms)
        except TimeoutError:
            return []
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
        claimed = await self._leases.claim(count)
        if taken := sum(deliveries > 1 for _, _, deliveries in claimed):  # the others were postponed
            log.info("took over entries of a silent consumer", stream=self._key, entries=taken)
        return await self._parse(claimed)

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
        record = self._type.model_validate_json(payload, extra="ignore")
        if record.run != self._streams.run:
            raise Invalid(f"a record of run {record.run} is in the stream of run {self._streams.run}")
        return record

    async def _bury_unreadable(self, entry_id: str, payload: str, reason: str, deliveries: int) -> None:
        """Move an entry to the dead letters. If they are full, it stays, and the entries beside it are still read."""
        try:
            await self._bury(entry_id, payload, reason, deliveries, {}, timeout_s=0)
        except StreamFull as error:
            log.warning("an unreadable record stays in the stream", stream=self._key, entry=entry_id, error=str(error))

    def leased(self, entries: Sequence[Entry[R]]) -> AbstractAsyncContextManager[None]:
        """Renew the lease on ``entries`` while the body runs.

        While that fails, another consumer may take the entries over; the first one to forward an entry then settles it.
        """
        return self._leases.renewing([entry.id for entry in entries])

    async def forward(self, entry: Entry[R], to: StreamName, record: Record, *, timeout_s: float) -> None:
        """Write ``record`` to the next stream and settle ``entry``, both or neither.

        Raises:
            StreamFull: the next stream had no room within ``timeout_s``; this consumer still holds the entry.
            LeaseLost: another consumer has settled the entry; ``record`` was not written.
            Superseded: a later attempt at the run has begun, so the entry is of no use; ``record`` was not written.
        """
        if not await self._move(entry.id, to, record, issuer_of(entry.record), timeout_s):
            raise LeaseLost(f"{self._key} entry {entry.id} was settled by another consumer")

    async def _move(self, entry_id: str, to: StreamName, record: Record, issuer: int | None, timeout_s: float) -> bool:
        """Write ``record`` to another stream and settle an entry of the attempt ``issuer``, both or neither.

        Return whether that was done; if not, another consumer has settled the entry. A stage settles an entry of a
        superseded attempt all the same, since nobody waits for it.

        Raises:
            StreamFull, Superseded: as ``forward``.
        """
        fence = self._streams.fence
        writer = issuer if fence is None else fence.attempt
        keys = [self._key, self._streams.key(to), self._streams.attempt_key]
        payload = record.model_dump_json()

        async def attempt() -> int:
            if fence is not None:
                fence.check()
            args: list[str | int] = [self._stage, entry_id, self._streams.bound, payload, LEFTOVER_S]
            args.append(UNFENCED if writer is None else writer)
            return int(await self._streams.forward_script(keys=keys, args=args))

        reply = await self._streams.until_admitted(attempt, to, timeout_s)
        if reply == REFUSED:
            if fence is None:
                await self._settle(entry_id)
            raise superseded(self._streams.run, writer or 0)
        return reply > 0

    async def postpone(self, entry: Entry[R], pause_s: float) -> None:
        """Have ``entry`` read again after ``pause_s``, and the lease at the latest, by any consumer.

        Meanwhile it takes no memory here, and this delivery does not count.
        """
        await self._leases.postpone(entry.id, pause_s, entry.deliveries - 1)

    async def end_pauses(self, ids: Sequence[str]) -> None:
        """Have postponed entries read again at once; those that others have taken stay with them."""
        await self._leases.end_pauses(ids)

    async def uncount(self, entry: Entry[R]) -> None:
        """Take back the count of this delivery, after a failure that is not the entry's own."""
        await self._leases.set_deliveries(entry.id, entry.deliveries - 1)

    async def settle(self, entry: Entry[R]) -> None:
        """Remove an entry that needs no successor.

        Raises:
            Superseded: this is the consumer of an attempt at the run that a later one superseded.
        """
        await self._settle(entry.id)

    async def _settle(self, entry_id: str) -> None:
        fence = self._streams.fence
        if fence is not None:
            fence.check()
        args = [self._stage, entry_id, UNFENCED if fence is None else fence.attempt]
        reply = await self._settle_script(keys=[self._key, self._streams.attempt_key], args=args)
        if fence is not None:
            fence.check_reply(reply)

    async def give_up(
        self, entry: Entry[R], reason: str, *, attempts: int | None = None, weights_version: int | None = None
    ) -> bool:
        """Move an entry to the dead letters with the reason. ``weights_version``: see ``DeadLetter``.

        Return whether that was done; if not, another consumer has settled the entry.

        Raises:
            StreamFull: the dead letters had no room; this consumer still holds the entry.
            Superseded: a later attempt at the run has begun, so the entry is of no use; there is no dead letter.
        """
        record = entry.record
        return await self._bury(
            entry.id,
            record.model_dump_json(),
            reason,
            attempts or entry.deliveries,
            {
                "group_id": record.group_id,
                "trace": record.trace,
                "stamps": record.stamps,
                "weights_version": weights_version,
            },
            issuer=issuer_of(record),
        )

    async def _bury(
        self,
        entry_id: str,
        payload: str,
        reason: str,
        attempts: int,
        identity: dict[str, Any],
        *,
        issuer: int | None = None,
        timeout_s: float = _DEAD_TIMEOUT_S,
    ) -> bool:
        letter = DeadLetter(
            run=self._streams.run,
            stage=self._stage,
            stream=self._stream,
            reason=reason[:2000].encode(errors="replace").decode(),  # names of files may have half a character
            attempts=attempts,
            run_attempt=issuer or 0,
            record=payload,
            **{"group_id": UNREADABLE, **identity},
        )
        if buried := await self._move(entry_id, "dead", letter, issuer, timeout_s):
            log.warning("dead letter", stream=self._key, group=letter.group_id, reason=letter.reason)
        return buried
