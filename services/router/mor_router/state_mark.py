"""Mark of the router's state in Redis, by whose absence a loss of that state is detected.

A queue server that comes back empty has lost the mark with all else. Until the state is restored or begun anew,
nothing new is stored, and what was read before stays in use.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from mor_core.errors import Unavailable
from mor_core.stored import StoredEntries
from mor_core.wire import Count, Wire
from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.exceptions import WatchError

from mor_router.store import CLIENTS, OBJECTIVES, STATE, RouterSnapshot, queue_replacement

T = TypeVar("T")

_MOST_READS = 3
"""Attempts to read one whole state: replacements of the state are minutes apart."""
_RETRY_S = 5.0
"""``Retry-After`` of a change while the state is restored, which takes seconds."""


_MARKS = StoredEntries("router_state")
_COUNT: TypeAdapter[int] = TypeAdapter(Count)


class StateMark(Wire):
    """Mark of the router's state. A server without it has lost the state, or never had one."""

    installation: str
    """Random name of the state, which its snapshots carry too."""
    epoch: Count = 0
    """Number of times that the whole state was replaced: restored, or imported."""
    snapshot: Count = 0
    """Number of the latest snapshot. A server with a lower one than a snapshot on disk has lost its last writes."""
    removals: Count = 0
    """Number of removed clients, objectives and labellers: where it has not changed, a key that is gone was lost."""


_COUNTERS = tuple(name.encode() for name in StateMark.model_fields if name != "installation")


async def read_mark(redis: Redis) -> StateMark | None:
    """Return the mark of the state; ``None`` where the server has none that can be read.

    A counter that does not fit begins at 0 again: it must neither look like a loss nor refuse to be raised.
    """
    fields: Any = await _MARKS.fetch_hash(redis, STATE)
    if b"installation" not in fields:  # a counter that somebody raised just after a loss
        return None
    installation = _MARKS.parse(STATE, fields.pop(b"installation"), bytes.decode)
    if installation is None:
        return None
    known = {name: fields[name] for name in _COUNTERS if name in fields}
    counters = _MARKS.parse_all(known, lambda _, value: _COUNT.validate_strings(value.decode()))
    if broken := {name: known[name] for name in known.keys() - counters.keys()}:
        await _MARKS.delete(redis, STATE, broken)
    return StateMark(installation=installation, **{name.decode(): count for name, count in counters.items()})


async def state_epoch(redis: Redis) -> tuple[object, object] | None:
    """Return what changes whenever the whole state is replaced; ``None`` while the server has no state.

    What was read between two equal answers is of one state.
    """
    installation, epoch = await redis.hmget(STATE, ["installation", "epoch"])
    return None if installation is None else (installation, epoch or b"0")


async def read_whole(redis: Redis, read: Callable[[], Awaitable[T]]) -> T:
    """Return what ``read`` finds in the router's state.

    Raises:
        Unavailable: the server lost the state, or it was replaced meanwhile.
        RedisError: the server failed.
    """
    for _ in range(_MOST_READS):
        epoch = await state_epoch(redis)
        found = await read()
        if epoch is not None and epoch == await state_epoch(redis):
            return found
    raise Unavailable("the queue server has lost the router's state, which is being restored", _RETRY_S)


async def require_state(redis: Redis) -> None:
    """Check that the server has the router's state, so that nothing new comes between a loss and the restoration.

    Raises:
        Unavailable: it has none yet.
    """
    if await state_epoch(redis) is None:
        raise Unavailable("the router's state is being restored; try again", _RETRY_S)


async def begin_state(redis: Redis) -> None:
    """Mark the present state, or its absence, as the router's, unless there is a mark."""
    await redis.hsetnx(STATE, "installation", uuid.uuid4().hex)


def count_removal(pipe: Any) -> None:
    """Count a removal in its transaction, so that what is gone does not look lost."""
    pipe.hincrby(STATE, "removals", 1)


async def restore_lost(redis: Redis, snapshot: RouterSnapshot, mark: StateMark) -> bool:
    """Write ``snapshot`` in one transaction to a server that lost the state; return whether it had still lost it.

    ``mark`` becomes that of the state.

    Raises:
        Invalid: a value of the snapshot cannot be stored.
    """
    async with redis.pipeline(transaction=True) as pipe:
        await pipe.watch(STATE, CLIENTS, OBJECTIVES)
        existing = await redis.hlen(CLIENTS) + await redis.hlen(OBJECTIVES)
        if existing or await state_epoch(redis) is not None:
            return False
        await queue_replacement(redis, pipe, snapshot)
        fields: Any = mark.model_dump()
        pipe.delete(STATE)
        pipe.hset(STATE, mapping=fields)
        try:
            await pipe.execute()
        except WatchError:  # another replica was first
            return False
    return True
