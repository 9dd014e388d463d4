"""The client registry: who may be asked, where, with which secret, and in which state. Survives restarts in Redis."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from mor_core.clients import Client
from mor_core.errors import Conflict, NotFound
from mor_core.wire import Card, ModelRef, Sha256
from pydantic import Field
from redis.asyncio import Redis
from redis.exceptions import WatchError

from mor_router.store import CLIENTS, key

_CONTENTION = 20


class ClientRecord(Client):
    """A client as it is stored."""

    secret: str = Field(repr=False)
    """The token that the router sends to the client, encrypted."""
    inbound_sha256: Sha256
    """Hash of the token with which the client reads its own page."""
    revision: str
    """Changes whenever address, secret or source change: connections are made anew."""
    distrusted_at: float | None = None
    """Unix time at which it was found to answer otherwise than at the fit, seconds: of what it says of anchors since,
    only the interleaved ones count, and no older gate version gives it weight. Null again when a fit has taken it
    back."""

    def public(self) -> Client:
        return Client(**{name: getattr(self, name) for name in Client.model_fields})


def new_revision() -> str:
    return uuid.uuid4().hex


class Registry:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def all(self) -> list[ClientRecord]:
        """Every client, by name."""
        values = (await self._redis.hgetall(CLIENTS)).values()
        return sorted((ClientRecord.model_validate_json(value) for value in values), key=lambda record: record.name)

    async def get(self, name: str) -> ClientRecord:
        """
        Raises:
            NotFound: no such client.
        """
        value = await self._redis.hget(CLIENTS, name)
        if value is None:
            raise NotFound(f"no client {name!r}; GET /v1/clients lists them")
        return ClientRecord.model_validate_json(value)

    async def add(self, record: ClientRecord) -> None:
        """
        Raises:
            Conflict: the name is taken.
        """
        if not await self._redis.hsetnx(CLIENTS, record.name, record.model_dump_json()):
            raise Conflict(f"client {record.name!r} is enrolled already; PATCH or rotate it, or DELETE it first")

    async def update(self, name: str, change: Callable[[ClientRecord], ClientRecord]) -> ClientRecord:
        """Apply ``change`` to the stored record, again if somebody else changed it meanwhile.

        Raises:
            NotFound: no such client.
            Conflict: it keeps changing.
        """
        for _ in range(_CONTENTION):
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(CLIENTS)
                record = change(await self.get(name))
                pipe.multi()  # type: ignore[no-untyped-call]
                pipe.hset(CLIENTS, name, record.model_dump_json())
                try:
                    await pipe.execute()
                except WatchError:
                    continue
                return record
        raise Conflict(f"client {name!r} is being changed by others; try again")

    async def probed(self, name: str, card: Card) -> ClientRecord:
        """Note what a probe found."""
        return await self.update(
            name, lambda record: record.model_copy(update={"card": card, "model": card.model, "probed_at": time.time()})
        )

    async def promote(self, name: str, fitted_at: float) -> bool:
        """Give a client on probation its weight by a gate version of ``fitted_at``; whether that changed anything. A
        version from before it was distrusted does not.

        Raises:
            NotFound: no such client.
        """
        promoted = False

        def change(record: ClientRecord) -> ClientRecord:
            nonlocal promoted
            promoted = record.state == "probation" and (record.distrusted_at or 0.0) < fitted_at
            given = {"state": "active", "reason": None, "distrusted_at": None}
            return record.model_copy(update=given) if promoted else record

        await self.update(name, change)
        return promoted

    async def serves(self, name: str, model: ModelRef) -> ModelRef | None:
        """Note the model that a client was seen to serve; the one before where that is another.

        Raises:
            NotFound: no such client.
        """
        before: ModelRef | None = None

        def change(record: ClientRecord) -> ClientRecord:
            nonlocal before
            before = record.model if record.model != model else None
            return record.model_copy(update={"model": model})

        await self.update(name, change)
        return before

    async def remove(self, name: str) -> None:
        """
        Raises:
            NotFound: no such client.
        """
        if not await self._redis.hdel(CLIENTS, name):
            raise NotFound(f"no client {name!r}; GET /v1/clients lists them")
        await self._redis.delete(key("influence", name))
