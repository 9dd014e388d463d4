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
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mor_core.bounded_reads import read_bounded
from mor_core.errors import StreamFull
from mor_core.fence import ATTEMPT, FENCED, UNFENCED, Fence
from mor_core.redis_client import open_client
from mor_core.server_clock import SERVER_CLOCK
from mor_core.settings import StreamSettings
from mor_core.stored import LEFTOVER_S, StoredEntries, is_wrong_type
from mor_core.wire import (
    DeadLetter,
    EventRecord,
    PromptRecord,
    Record,
    RewardRecord,
    RolloutRecord,
    StreamName,
)

RECORD_TYPES: dict[StreamName, type[Record]] = {
    "prompts": PromptRecord,
    "rollouts": RolloutRecord,
    "rewards": RewardRecord,
    "events": EventRecord,
    "dead": DeadLetter,
}
GROUP_STREAMS: tuple[StreamName, ...] = ("prompts", "rollouts", "rewards", "dead")
"""Streams that carry groups; ``events`` carries the run's history."""

FIELD = "record"
LARGEST_RECORD = 16 << 20
"""Bytes of one record: a group of long responses has a few hundred kilobytes."""
_ID_BYTES = 64
"""Bound of a read that wants the ids of entries and not their content."""

# KEYS: stream, newest attempt. ARGV: bound, record, seconds to live, attempt.
_ADMIT = f"""{FENCED}
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[1], '*', 'record', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""

# KEYS: source, destination, newest attempt.
# ARGV: consumer group, entry id, bound of the destination, record, seconds to live, attempt.
# The record is added first: a script that fails is not undone, and the entry must stay if the destination takes none.
# The source is looked at before that, so that a key of another type there adds nothing.
_FORWARD = f"""{FENCED}
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

# KEYS: stream. The script's error may have been about another key, or another process was first: then the stream stays.
_MEND = f"""
local added = redis.pcall('XADD', KEYS[1], '*', 'record', '')
if type(added) == 'table' then
  local is_broken = added.err:find('WRONGTYPE') or added.err:find('exhausted')
  return is_broken and redis.call('DEL', KEYS[1]) or 0
end
redis.call('XDEL', KEYS[1], added)
redis.call('EXPIRE', KEYS[1], {LEFTOVER_S})
return 0
"""

RECORDS = {name: StoredEntries(name, largest=LARGEST_RECORD) for name in RECORD_TYPES}

log = structlog.get_logger(__name__)


def connect(settings: StreamSettings) -> Redis:
    """Return a client of the queue server."""
    return open_client(settings.redis_url.get_secret_value())


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

    def __init__(self, redis: Redis, run: str, bound: int, fence: Fence | None = None) -> None:
        """``fence``: that of the attempt that writes here; a stage and run control have none."""
        self.redis = redis
        self.run = run
        self.bound = bound
        self.fence = fence
        self._admit = redis.register_script(_ADMIT)
        self._mend = redis.register_script(_MEND)
        self.forward_script = redis.register_script(_FORWARD)

    def key(self, name: StreamName) -> str:
        return key(self.run, name)

    @property
    def attempt_key(self) -> str:
        """Key with the newest attempt at the run, the last one of every script that writes."""
        return key(self.run, ATTEMPT)

    async def publish(self, stream: StreamName, record: Record, *, timeout_s: float) -> None:
        """Append ``record``, waiting while the stream holds ``bound`` unsettled entries.

        Raises:
            StreamFull: no room within ``timeout_s``.
            Superseded: a later attempt at the run has begun.
        """
        payload, fence = record.model_dump_json(), self.fence
        keys = [self.key(stream), self.attempt_key]

        async def attempt() -> int:
            if fence is not None:
                fence.check()
            writer = UNFENCED if fence is None else fence.attempt
            args: list[str | int] = [self.bound, payload, LEFTOVER_S, writer]
            return int(await self._admit(keys=keys, args=args))

        reply = await self.until_admitted(attempt, stream, timeout_s)
        if fence is not None:
            fence.check_reply(reply)

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
        if "exhausted" not in str(error) and not is_wrong_type(error):
            return False
        deleted = bool(await self._mend(keys=[self.key(stream)]))
        if deleted:
            RECORDS[stream].refuse(self.key(stream), "the key is no stream that takes entries; it is deleted")
        return deleted

    async def depth(self, stream: StreamName) -> int:
        """Return the number of unsettled entries."""
        return int(await self.redis.xlen(self.key(stream)))

    async def backlog(self, stream: StreamName) -> Backlog:
        """Return the number of unsettled entries and the age of the oldest."""
        try:
            first = await oldest_entry(self.redis, self.key(stream))
            entries = await self.depth(stream)
        except ResponseError as error:
            if not await self.mend(stream, error):
                raise
            return Backlog(0, 0.0)
        if first is None:
            return Backlog(entries, 0.0)
        milliseconds = int(first.partition(b"-")[0])
        return Backlog(entries, max(0.0, await SERVER_CLOCK.read(self.redis) - milliseconds / 1e3))


async def oldest_entry(redis: Redis, stream: str) -> bytes | None:
    """Return the id of the oldest entry without reading it.

    Raises:
        RedisError: the server failed, or the key is no stream.
    """
    found = await read_bounded(redis, _ID_BYTES, "XRANGE", stream, "-", "+", "COUNT", 1)
    return found[0][0] if found else None
