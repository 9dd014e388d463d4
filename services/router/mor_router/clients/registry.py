"""Client registry: each client's address, encrypted secret and state, kept in Redis over restarts."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Literal

from mor_core.clients import Client, State
from mor_core.errors import Conflict, Invalid, NotFound
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stored import StoredEntries
from mor_core.wire import Card, Count, ModelRef, Sha256, Wire
from pydantic import Field
from redis.asyncio import Redis
from redis.exceptions import WatchError

from mor_router.clients.secret_store import SecretOwner
from mor_router.state_mark import count_removal, require_state
from mor_router.store import CLIENTS, STATE, forget_client

_MOST_UPDATE_ATTEMPTS = 20
"""Optimistic attempts of one update; each lost one means that another writer got through."""


_CLIENTS = StoredEntries("clients")


class BeforePause(Wire):
    """State of a client when it was paused, to which it returns."""

    state: State
    reason: str | None = None
    distrusted_at: float | None = None
    unreliable_at: float | None = None


class ClientRecord(Client):
    """A client as it is stored."""

    url: str
    secret: str = Field(repr=False)
    """The token that the router sends to the client, encrypted."""
    inbound_sha256: Sha256
    """Hash of the token with which the client reads its own page."""
    enrolled_by: str | None = None
    """Name of the token of scope ``enrolment`` that enrolled it; null if another way."""
    revision: str
    """Changes whenever address, secret or source change; the connection is then made again."""
    generation: Count = 0
    """Grows with each change of address, secret or page token: the Unix time of that, in microseconds, or one more than
    before. A router that has seen a later one refuses the record, which somebody put back."""
    distrusted_at: float | None = None
    """Unix time, in seconds, at which the client was found to score otherwise than at the fit. From then on only its
    honeypot scores count, and no older gate version gives it weight. Null again when a fit has accepted it."""

    unreliable_at: float | None = None
    """Unix time, in seconds, at which the client was put on probation because groups waited for it in vain. Null again
    when it is reliable."""

    before_pause: BeforePause | None = None
    """Null unless it is paused, and for one that an earlier release paused."""

    def moved_to(self, state: Literal["probation", "active", "paused", "resumed"], reason: str | None) -> ClientRecord:
        """Return the record in another state. A pause keeps what a later ``resumed`` returns to.

        Raises:
            Conflict: it is to resume and is not paused.
        """
        found: dict[str, Any] = {"state": state, "reason": reason, "distrusted_at": None, "unreliable_at": None}
        kept: BeforePause | None = None
        if state == "paused":
            names = BeforePause.model_fields
            now = BeforePause(**{name: getattr(self, name) for name in names})
            kept = self.before_pause if self.state == "paused" else now
        elif state == "resumed":
            if self.state != "paused":
                raise Conflict(
                    f"client {self.name!r} is {self.state}, not paused; 'probation' or 'active' moves it to that state"
                )
            found = dict(self.before_pause or BeforePause(state="probation"))
        return self.model_copy(update={**found, "before_pause": kept})

    @property
    def owner(self) -> SecretOwner:
        """Owner that its secret is bound to."""
        return SecretOwner("client", self.name, self.url, self.source, self.inbound_sha256, self.generation)

    def public(self) -> Client:
        """Return the record without secrets."""
        return Client(**{name: getattr(self, name) for name in Client.model_fields})


def parse_record(name: str, value: bytes) -> ClientRecord:
    """Parse the record that is stored under ``name``.

    Raises:
        ValueError: it does not fit.
        Invalid: it is of another client.
    """
    record = ClientRecord.model_validate_json(value, extra="ignore")
    if record.name != name:
        raise Invalid("a client's record is stored under another name")
    return record


def new_revision() -> str:
    return uuid.uuid4().hex


def next_generation(known: int = 0) -> int:
    """Return the generation of new credentials, later also than those of a removed client of the same name."""
    return max(known + 1, round(SERVER_CLOCK.now() * 1e6))


class ClientRegistry:
    """Store of the enrolled clients."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    async def all(self) -> list[ClientRecord]:
        """Return every client whose record can be read, sorted by name."""
        found = _CLIENTS.parse_all(
            await _CLIENTS.fetch_hash(self.redis, CLIENTS), lambda name, value: parse_record(name.decode(), value)
        )
        return sorted(found.values(), key=lambda record: record.name)

    async def get(self, name: str) -> ClientRecord:
        """Return one client.

        Raises:
            NotFound: no such client.
            Conflict: its record cannot be read.
        """
        value = await _CLIENTS.fetch(self.redis, "HGET", CLIENTS, name)
        if value is None:
            raise NotFound(f"no client {name!r}; GET /v1/clients lists them")
        record = _CLIENTS.parse(name, value, lambda given: parse_record(name, given))
        if record is None:
            raise Conflict(
                f"the stored record of client {name!r} cannot be read (the log has the reason); DELETE the client and "
                "enrol it again, or restore the record from an export"
            )
        return record

    async def add(self, record: ClientRecord, check: Callable[[list[ClientRecord]], None]) -> None:
        """Add a client, if ``check`` accepts it beside those that are enrolled at that moment.

        Raises:
            Conflict: other writers keep changing the registry.
            Unavailable: the queue server lost the registry, and it is not restored yet.
        """
        for _ in range(_MOST_UPDATE_ATTEMPTS):
            async with self.redis.pipeline(transaction=True) as pipe:
                await pipe.watch(CLIENTS, STATE)
                await require_state(self.redis)
                check(await self.all())
                pipe.multi()  # type: ignore[no-untyped-call]
                pipe.hset(CLIENTS, record.name, record.model_dump_json())
                try:
                    await pipe.execute()
                except WatchError:
                    continue
                return
        raise Conflict("the registry is being changed by other requests; try again")

    async def update(self, name: str, change: Callable[[ClientRecord], ClientRecord]) -> ClientRecord:
        """Apply ``change`` to the stored record, and again if another writer changed it meanwhile.

        Raises:
            NotFound: no such client.
            Conflict: other writers keep changing it.
        """
        for _ in range(_MOST_UPDATE_ATTEMPTS):
            async with self.redis.pipeline(transaction=True) as pipe:
                await pipe.watch(CLIENTS)
                record = change(await self.get(name))
                pipe.multi()  # type: ignore[no-untyped-call]
                pipe.hset(CLIENTS, name, record.model_dump_json())
                try:
                    await pipe.execute()
                except WatchError:
                    continue
                return record
        raise Conflict(f"client {name!r} is being changed by other requests; try again")

    async def record_probe(self, name: str, card: Card) -> ClientRecord:
        """Store the card that a probe returned.

        Raises:
            NotFound: no such client.
        """
        found = {"card": card, "model": card.model, "probed_at": SERVER_CLOCK.now()}
        return await self.update(name, lambda record: record.model_copy(update=found))

    async def promote(self, name: str, fitted_at: float) -> bool:
        """Activate a client on probation by a gate version of ``fitted_at``; return whether its state changed.

        A version older than the client's distrust does not activate it, nor one of a client that is unreliable.

        Raises:
            NotFound: no such client.
        """
        promoted = False

        def change(record: ClientRecord) -> ClientRecord:
            nonlocal promoted
            earned = record.unreliable_at is None and (record.distrusted_at or 0.0) < fitted_at
            promoted = record.state == "probation" and earned
            given = {"state": "active", "reason": None, "distrusted_at": None}
            return record.model_copy(update=given) if promoted else record

        await self.update(name, change)
        return promoted

    async def record_model(self, name: str, model: ModelRef) -> ModelRef | None:
        """Store the model that a client serves; return the one before, or ``None`` where it is the same.

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
        """Remove a client.

        Raises:
            NotFound: no such client.
        """
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.hdel(CLIENTS, name)
            count_removal(pipe)
            removed, _ = await pipe.execute()
        if not removed:
            raise NotFound(f"no client {name!r}; GET /v1/clients lists them")
        await forget_client(self.redis, name)
