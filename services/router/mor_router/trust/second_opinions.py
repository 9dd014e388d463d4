"""Second opinions: a random share of the groups that a person labelled, which another person labels as well.

A group that waits for one looks like any other waiting group: nobody can be honest about second opinions alone. It has
a name of its own, which tells neither when the group was chosen nor that it was labelled.
"""

from __future__ import annotations

import asyncio
from typing import Any

from mor_core.audits import Preferred
from mor_core.image_budget import check_named
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stored import StoredEntries
from mor_core.wire import Sha256, Wire
from redis.asyncio import Redis

from mor_router.store import key
from mor_router.trust.audit_types import LiveAudit
from mor_router.trust.waiting_groups import audit_name, chosen_at, parse_name

_MOST_WAITING = 32
"""Groups of one objective that wait for a second opinion; the oldest ones are dropped."""
_LONGEST_WAIT_S = 7 * 86400
"""Seconds until a group is dropped that no other person came for: a week, to cover people's holidays."""
_OPINIONS = StoredEntries("second_opinions", largest=128 << 20)


class SecondOpinion(Wire):
    """A labelled group that waits for another person's label."""

    audit: LiveAudit
    person: str
    """Name of the token of the person who labelled it."""
    preferred: Preferred
    """That person's label."""
    label: Sha256 | None
    """Digest of the labelled pair; ``None`` where neither response was better."""


class SecondOpinions:
    """Groups that wait for a second opinion, by objective, in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(self, objective: str, opinion: SecondOpinion) -> None:
        """Store a labelled group for another person, and drop the oldest ones over the bound."""
        name = audit_name(opinion.audit, SERVER_CLOCK.now())
        value = await asyncio.to_thread(opinion.model_dump_json)
        place = key("second", objective)
        await _OPINIONS.write(self._redis, {place: "hash"}, lambda: self._redis.hset(place, name, value))
        for oldest in (await self.waiting(objective))[:-_MOST_WAITING]:
            await self.remove(objective, oldest)

    async def waiting(self, objective: str) -> list[str]:
        """Return the names of the waiting groups, oldest first."""
        place = key("second", objective)
        stored: list[bytes] = await _OPINIONS.read(place, _OPINIONS.fetch(self._redis, "HKEYS", place), [])
        names = sorted(_OPINIONS.parse_list(stored, parse_name))
        for late in [name for name in names if SERVER_CLOCK.now() - chosen_at(name) > _LONGEST_WAIT_S]:
            await self.remove(objective, late)
            names.remove(late)
        return names

    async def get(self, objective: str, name: str) -> SecondOpinion | None:
        """Return a waiting group; ``None`` where it waits no longer."""
        place = key("second", objective)
        value: Any = await _OPINIONS.read(place, _OPINIONS.fetch(self._redis, "HGET", place, name), None)
        opinion = await asyncio.to_thread(_OPINIONS.parse, name, value, _opinion)
        if opinion is None and value is not None:
            await _OPINIONS.delete(self._redis, place, {name: value})  # nobody could label it
        return opinion

    async def remove(self, objective: str, name: str) -> bool:
        """Remove a waiting group; return whether it still waited."""
        place = key("second", objective)
        return bool(await _OPINIONS.read(place, self._redis.hdel(place, name), 0))

    async def remove_of(self, objective: str, person: str) -> None:
        """Remove the groups that ``person`` labelled first."""
        for name in await self.waiting(objective):
            opinion = await self.get(objective, name)
            if opinion is not None and opinion.person == person:
                await self.remove(objective, name)


def _opinion(content: bytes) -> SecondOpinion:
    opinion = SecondOpinion.model_validate_json(content, extra="ignore")
    check_named(opinion.audit.images)
    return opinion
