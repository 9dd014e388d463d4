"""Streams of a run: bounded, at-least-once delivery between stages that drops nothing.

An entry is settled only together with the next stage's record: ``Consumer.forward`` writes the record, acknowledges the
entry and deletes it in one Lua script, so a group moves on exactly once even when two consumers worked on it. A full
stream slows its producer; nothing is trimmed. Another consumer takes over an entry when its holder is silent for
``lease_s``; ``Consumer.leased`` renews the lease during work. A consumer that ends in order releases every entry that
it holds.

Keys carry the run as a hash tag (``mor:{RUN}:prompts``), so that one run lives in one cluster slot.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mor_core.bounded_reads import Oversized, call_bounded, read_bounded
from mor_core.errors import Invalid, LeaseLost, StreamFull
from mor_core.failures import describe_failure
from mor_core.settings import StreamSettings
from mor_core.stored import LEFTOVER_S, StoredEntries, is_wrong_type
from mor_core.tasks import stop
from mor_core.wire import (
    DeadLetter,
    EventRecord,
    PromptRecord,
    Record,
    RewardRecord,
    RolloutRecord,
    StageName,
    StreamName,
)

R = TypeVar("R", bound=Record)
Payload: TypeAlias = bytes | Oversized
"""Record of an entry, before it is parsed."""

RECORD_TYPES: dict[StreamName, type[Record]] = {
    "prompts": PromptRecord,
    "rollouts": RolloutRecord,
    "rewards": RewardRecord,
    "events": EventRecord,
    "dead": DeadLetter,
}
GROUP_STREAMS: tuple[StreamName, ...] = ("prompts", "rollouts", "rewards", "dead")
"""Streams that carry groups; ``events`` carries the run's history."""

_FIELD = "record"
_LONGEST_LETTER = 1 << 20
"""Bytes of an unreadable record that its dead letter keeps: enough to find the fault."""
LARGEST_RECORD = 16 << 20
"""Bytes of one record: a group of long responses has a few hundred kilobytes."""
_MOST_READ = 32
"""Entries of one read, so that the largest records together take half a gigabyte."""
_ID_BYTES = 64
"""Bound of a read that wants the ids of entries and not their content."""
_MOST_COUNTED = 1 << 30
"""Largest number of deliveries that can be genuine: one a second for decades."""
_SOCKET_TIMEOUT_S = 15.0
"""Longest wait for an answer of the queue server, seconds: three times the longest blocking read."""
_DEAD_TIMEOUT_S = 30.0
"""Longest wait for room among the dead letters, seconds: the trainer empties them at every look at its streams."""
_LONGEST_BLOCK_S = 5.0
"""Longest blocking read, seconds: well below the socket's time limit."""

_ADMIT = """
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[1], '*', 'record', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""

# KEYS: source, destination. ARGV: consumer group, entry id, bound of the destination, record, seconds to live.
# The record is added first: a script that fails is not undone, and the entry must stay if the destination takes none.
# The source is looked at before that, so that a key of another type there adds nothing.
_FORWARD = """
redis.call('XLEN', KEYS[1])
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[3]) then return 0 end
local added = redis.call('XADD', KEYS[2], '*', 'record', ARGV[4])
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  redis.call('XDEL', KEYS[2], added)
  return -1
end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 1
"""

_RECORDS = {name: StoredEntries(name, largest=LARGEST_RECORD) for name in RECORD_TYPES}

log = structlog.get_logger(__name__)


def connect(settings: StreamSettings) -> Redis:
    """Return a Redis client whose operations have time limits and a bounded number of jittered retries."""
    return Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_timeout=_SOCKET_TIMEOUT_S,
        socket_connect_timeout=5.0,
        health_check_interval=30,
        retry=Retry(ExponentialWithJitterBackoff(cap=2.0, base=0.05), retries=6),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
        protocol=2,  # the shape of XREADGROUP replies depends on it
        client_name=f"mor-{os.getpid()}",
    )


def key(run: str, name: str) -> str:
    """Return the Redis key of a run's part."""
    return f"mor:{{{run}}}:{name}"


@dataclass(frozen=True)
class Backlog:
    """Entries in a stream, read or not: an entry leaves when its stage has settled it."""

    entries: int
    oldest_s: float
    """Age of the oldest entry by the queue server's clock, seconds; 0 for an empty stream."""


class Streams:
    """Writing side of the streams of one run."""

    def __init__(self, redis: Redis, run: str, bound: int) -> None:
        self.redis = redis
        self.run = run
        self.bound = bound
        self._admit = redis.register_script(_ADMIT)
        self.forward_script = redis.register_script(_FORWARD)

    def key(self, name: StreamName) -> str:
        return key(self.run, name)

    async def publish(self, stream: StreamName, record: Record, *, timeout_s: float) -> None:
        """Append ``record``, waiting while the stream holds ``bound`` unsettled entries.

        Raises:
            StreamFull: no room within ``timeout_s``.
        """
        payload = record.model_dump_json()

        async def attempt() -> int:
            return int(await self._admit(keys=[self.key(stream)], args=[self.bound, payload, LEFTOVER_S]))

        await self.until_admitted(attempt, stream, timeout_s)

    async def until_admitted(self, attempt: Callable[[], Awaitable[int]], stream: StreamName, timeout_s: float) -> int:
        """Repeat ``attempt`` with jittered back-off until ``stream`` has room, and return its result; 0 means no room.

        Raises:
            StreamFull: there was no room within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        pause = 0.01
        while (result := await self._mended(attempt, stream)) == 0:
            if time.monotonic() >= deadline:
                raise StreamFull(
                    f"{self.key(stream)} stayed full for {timeout_s:g} s; is its consumer running? "
                    "(bound: MOR_STREAM_BOUND)"
                )
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(pause * 2, 0.5)
        return result

    async def _mended(self, attempt: Callable[[], Awaitable[int]], stream: StreamName) -> int:
        """Call ``attempt``, once more on an empty stream where the present one takes no entries."""
        try:
            return await attempt()
        except ResponseError as error:
            if not await self.mend(stream, error):
                raise
            return await attempt()

    async def mend(self, stream: StreamName, error: ResponseError) -> bool:
        """Delete the key of ``stream`` if ``error`` says that it is no stream or takes no entry; return whether it did.

        What it held is issued again by the trainer, as after the loss of the queue server.
        """
        if "exhausted" not in str(error) and not (is_wrong_type(error) and await self._is_no_stream(stream)):
            return False
        _RECORDS[stream].refuse(self.key(stream), "the key is no stream that takes entries; it is deleted")
        await self.redis.delete(self.key(stream))
        return True

    async def _is_no_stream(self, stream: StreamName) -> bool:
        """Return whether this key has another type; a script's error may be about another of its keys."""
        try:
            await self.redis.xlen(self.key(stream))
        except ResponseError as error:
            if is_wrong_type(error):
                return True
            raise
        return False

    async def depth(self, stream: StreamName) -> int:
        """Return the number of unsettled entries."""
        return int(await self.redis.xlen(self.key(stream)))

    async def backlog(self, stream: StreamName) -> Backlog:
        """Return the number of unsettled entries and the age of the oldest."""
        pipe = self.redis.pipeline(transaction=False)
        pipe.xlen(self.key(stream))
        pipe.time()
        try:
            first = await oldest_entry(self.redis, self.key(stream))
            entries, (seconds, microseconds) = await pipe.execute()
        except ResponseError as error:
            if not await self.mend(stream, error):
                raise
            return Backlog(0, 0.0)
        if first is None:
            return Backlog(int(entries), 0.0)
        milliseconds = int(first.partition(b"-")[0])
        return Backlog(int(entries), max(0.0, seconds + microseconds / 1e6 - milliseconds / 1e3))

    async def delete(self) -> None:
        """Delete the streams of a finished run."""
        await self.redis.delete(*(self.key(name) for name in RECORD_TYPES))


async def oldest_entry(redis: Redis, stream: str) -> bytes | None:
    """Return the id of the oldest entry without reading it.

    Raises:
        RedisError: the server failed, or the key is no stream.
    """
    found = await read_bounded(redis, _ID_BYTES, "XRANGE", stream, "-", "+", "COUNT", 1)
    return found[0][0] if found else None


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
        self._leased: set[str] = set()
        """Entries in work here. Their lease may end while the event loop stands still; they are not claimed again."""

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
        """Return up to ``count`` entries: those of silent consumers, else new ones, waiting up to ``block_s`` for them.

        An entry that is no valid record goes to the dead letters at once.
        """
        count = min(count, _MOST_READ)
        try:
            claimed = await self._claim(count)
            if claimed:
                return claimed
            found = await self._read_new(count) or await self._wait_for_new(block_s)
            if not found:
                await self._return_to_passed_over()
        except ResponseError as error:
            if "NOGROUP" not in str(error) and not await self._streams.mend(self._stream, error):
                raise
            await self._create_group()
            return []
        return await self._parse([(entry_id, payload, 1) for entry_id, payload in found])

    async def _read_new(self, count: int) -> list[tuple[bytes, Payload]]:
        """Return new entries that are there, without waiting."""
        group = ("GROUP", self._stage, self.name)
        command = ("XREADGROUP", *group, "COUNT", count, "STREAMS", self._key, ">")
        reply = await call_bounded(self._redis.evalsha, self._redis, LARGEST_RECORD, self._key, *command)
        return [pair for _, entries in reply or [] for pair in _payloads(entries)]

    async def _wait_for_new(self, block_s: float) -> list[tuple[bytes, Payload]]:
        """Return the next new entry; none after ``block_s``. A script cannot wait, so the server does not measure it
        and it comes alone."""
        block_ms = max(1, round(min(block_s, _LONGEST_BLOCK_S) * 1000))
        reply: Any = await self._redis.xreadgroup(self._stage, self.name, {self._key: ">"}, count=1, block=block_ms)
        return [
            (entry_id, fields.get(_FIELD.encode(), b"")) for _, entries in reply or [] for entry_id, fields in entries
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
            _RECORDS[self._stream].refuse(self._key, "the consumer group passed over entries; it begins again")
            await self._redis.xgroup_setid(self._key, self._stage, "0")
        self._passed_over = oldest

    async def _claim(self, count: int) -> list[Entry[R]]:
        command = ("XAUTOCLAIM", self._key, self._stage, self.name, self._lease_ms, self._claim_from, "COUNT", count)
        reply = await call_bounded(self._redis.evalsha, self._redis, LARGEST_RECORD, self._key, *command)
        self._claim_from = reply[0]  # "0-0" once the end is reached
        found = _payloads(reply[1])
        if not found:
            return []
        pending = await self._redis.xpending_range(
            self._key, self._stage, min=found[0][0], max=found[-1][0], count=len(found), consumername=self.name
        )
        deliveries: dict[Any, int] = {item["message_id"]: int(item["times_delivered"]) for item in pending}
        for entry_id in [name for name, count in deliveries.items() if not 0 < count <= _MOST_COUNTED]:
            deliveries[entry_id] = 2  # as after one failure; otherwise the count, which another wrote, would stay
            await self._set_deliveries(entry_id, 2)
        own = [entry_id for entry_id, _ in found if entry_id.decode() in self._leased]
        for entry_id in own:
            await self._set_deliveries(entry_id, deliveries.get(entry_id, 2) - 1)
        claimed = [(entry_id, payload) for entry_id, payload in found if entry_id not in own]
        if not claimed:
            return []
        log.info("took over entries of a silent consumer", stream=self._key, entries=len(claimed))
        return await self._parse([(entry_id, payload, deliveries.get(entry_id, 2)) for entry_id, payload in claimed])

    async def _parse(self, raw: Sequence[tuple[bytes, Payload, int]]) -> list[Entry[R]]:
        entries: list[Entry[R]] = []
        for entry_id, payload, deliveries in raw:
            try:
                record: Any = self._record(payload)
            except Exception as error:  # whatever a validator raises, the record is at fault
                reason = describe_failure(error)
                _RECORDS[self._stream].refuse(entry_id, reason)
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
                try:
                    await self._set_idle([entry.id for entry in entries], idle_ms=0)
                except RedisError as error:  # the server may return before the work is done
                    log.warning(
                        "a lease cannot be renewed",
                        stream=self._key,
                        entries=len(entries),
                        error=describe_failure(error),
                    )

        ids = {entry.id for entry in entries}
        self._leased |= ids
        task = asyncio.create_task(renew(), name=f"lease {self._key}")
        try:
            yield
        finally:
            self._leased -= ids
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
            found.append((entry_id, fields.get(_FIELD.encode(), b"")))
    return found
