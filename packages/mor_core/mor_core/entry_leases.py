"""Leases of one consumer on entries of a stream: claimed from silent consumers, renewed, postponed and handed back.

The queue server counts the idle time of an entry from its last delivery. Whoever holds an entry sets that time: to 0 to
renew the lease, to the whole lease to hand the entry back, and to a part of it for a pause.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_core.background import in_background
from mor_core.bounded_reads import Oversized, call_bounded
from mor_core.failures import describe_failure
from mor_core.streams import FIELD, LARGEST_RECORD

Payload: TypeAlias = bytes | Oversized
"""Record of an entry, before it is parsed."""

_MOST_COUNTED = 1 << 30
"""Largest number of deliveries that can be genuine: one a second for decades."""

log = structlog.get_logger(__name__)


class EntryLeases:
    """Leases that one consumer has on the entries of its stream."""

    def __init__(self, redis: Redis, key: str, stage: str, *, consumer: str, lease_s: float, most: int) -> None:
        """``consumer`` is the name in the group of ``stage``; ``most``: entries that the stream can hold."""
        self._redis, self._key, self._stage, self._consumer, self._most = redis, key, stage, consumer, most
        self._lease_ms = max(1, round(lease_s * 1000))
        self._claim_from: Any = "0-0"
        """Entry at which the next look for those of silent consumers starts; one look sees a part of the stream."""
        self._renewed: dict[str, object] = {}
        """Entries in work here, each with the mark of its ``renewing`` block. Their lease may end while the event loop
        stands still; they are not claimed again."""

    async def claim(self, count: int) -> list[tuple[bytes, Payload, int]]:
        """Take up to ``count`` entries whose leases are over; return id, record and number of deliveries of each."""
        command = ("XAUTOCLAIM", self._key, self._stage, self._consumer, self._lease_ms, self._claim_from)
        bounded = (self._redis.evalsha, self._redis, LARGEST_RECORD, self._key)
        reply = await call_bounded(*bounded, *command, "COUNT", count)
        self._claim_from = reply[0]  # "0-0" once the end is reached
        found = payloads(reply[1])
        if not found:
            return []
        ids = {entry_id for entry_id, _ in found}
        deliveries: dict[Any, int] = {  # postponed entries may lie between those found
            item["message_id"]: int(item["times_delivered"])
            for item in await self._held(first=found[0][0], last=found[-1][0])
            if item["message_id"] in ids
        }
        for entry_id in [name for name, times in deliveries.items() if not 0 < times <= _MOST_COUNTED]:
            deliveries[entry_id] = 2  # as after one failure; otherwise the count, which another wrote, would stay
            await self.set_deliveries(entry_id, 2)
        own = [entry_id for entry_id, _ in found if entry_id.decode() in self._renewed]
        for entry_id in own:
            await self.set_deliveries(entry_id, deliveries.get(entry_id, 2) - 1)
        return [(entry_id, payload, deliveries.get(entry_id, 2)) for entry_id, payload in found if entry_id not in own]

    @contextlib.asynccontextmanager
    async def renewing(self, ids: Sequence[str]) -> AsyncIterator[None]:
        """Renew the leases while the body runs, every third of their time; one that is postponed is left out."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._lease_ms / 3000)
                held = [entry_id for entry_id in ids if self._renewed.get(entry_id) is mark]
                try:
                    if held:
                        await self._set_idle(held, idle_ms=0)
                except RedisError as error:  # the server may return before the work is done
                    reason = describe_failure(error)
                    log.warning("a lease cannot be renewed", stream=self._key, entries=len(held), error=reason)

        mark = object()
        self._renewed |= dict.fromkeys(ids, mark)
        try:
            async with in_background(others=[renew]):
                yield
        finally:
            self._renewed = {name: other for name, other in self._renewed.items() if other is not mark}

    async def postpone(self, entry_id: str, pause_s: float, deliveries: int) -> None:
        """End the lease on an entry after ``pause_s``, or its usual time if that is shorter; set its deliveries."""
        self._renewed.pop(entry_id, None)
        idle_ms = max(0, self._lease_ms - round(1000 * pause_s))
        await self._redis.xclaim(
            self._key, self._stage, self._consumer, 0, [entry_id],
            idle=idle_ms, retrycount=max(0, deliveries), justid=True,
        )  # fmt: skip

    async def end_pauses(self, ids: Sequence[str]) -> None:
        """End the leases on those of ``ids`` that this consumer still holds and has not in work."""
        names = {bytes(item["message_id"]).decode() for item in await self._held()}
        if paused := names.intersection(ids) - self._renewed.keys():
            await self._set_idle(sorted(paused), idle_ms=self._lease_ms)

    async def end_all(self) -> None:
        """End the leases on all entries, so that another consumer can take them at once."""
        if held := await self._held():
            await self._set_idle([item["message_id"] for item in held], idle_ms=self._lease_ms)

    async def set_deliveries(self, entry_id: str | bytes, deliveries: int) -> None:
        """Set the number of deliveries of an entry that this consumer holds; its lease begins again."""
        await self._redis.xclaim(
            self._key, self._stage, self._consumer, 0, [entry_id], retrycount=deliveries, justid=True
        )

    async def _held(self, first: Any = "-", last: Any = "+") -> list[Any]:
        """List the entries that this consumer holds, from ``first`` to ``last``."""
        found: list[Any] = await self._redis.xpending_range(
            self._key, self._stage, min=first, max=last, count=self._most, consumername=self._consumer
        )
        return found

    async def _set_idle(self, ids: Sequence[Any], idle_ms: int) -> None:
        """Set the idle time of entries that this consumer holds."""
        await self._redis.xclaim(self._key, self._stage, self._consumer, 0, list(ids), idle=idle_ms, justid=True)


def payloads(entries: Any) -> list[tuple[bytes, Payload]]:
    """Return id and record of each entry as a script returns it: the id, and fields and values in turn."""
    found = []
    for entry_id, flat in entries:
        fields = dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}
        if fields:
            found.append((entry_id, fields.get(FIELD.encode(), b"")))
    return found
