"""Tallies of what each person answered about audited groups, and of how often a second person answered otherwise."""

from __future__ import annotations

import json
from collections import Counter
from typing import Literal, get_args

from mor_core.stored import StoredEntries
from mor_core.stored_counters import count_field
from mor_core.wire import Count
from pydantic import TypeAdapter
from redis.asyncio import Redis

from mor_router.store import key

Tally = Literal["labelled", "undecided", "skipped", "compared", "disagreed"]

_FIELD: TypeAdapter[tuple[str, Tally]] = TypeAdapter(tuple[str, Tally])
_COUNT: TypeAdapter[int] = TypeAdapter(Count)
_TALLIES = StoredEntries("person_tallies")


class PersonTallies:
    """Counters of each person's answers, by objective, in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def count(self, objective: str, person: str, *tallies: Tally) -> None:
        """Count an answer of ``person``."""
        place = key("people", objective)
        for tally in tallies:
            field = _field(person, tally)
            if await count_field(self._redis, place, field):
                _TALLIES.refuse(field, "the count is none; it begins anew")

    async def of(self, objective: str) -> dict[str, Counter[Tally]]:
        """Return person -> its tallies."""
        place = key("people", objective)
        stored: dict[bytes, bytes] = await _TALLIES.read(place, _TALLIES.fetch_hash(self._redis, place), {})
        found: dict[str, Counter[Tally]] = {}
        for (person, tally), count in _TALLIES.parse_all(stored, _line).values():
            found.setdefault(person, Counter())[tally] = count
        return found

    async def forget(self, objective: str, person: str) -> None:
        """Delete a person's tallies."""
        place = key("people", objective)
        fields = [_field(person, tally) for tally in get_args(Tally)]
        await _TALLIES.read(place, self._redis.hdel(place, *fields), 0)


def _field(person: str, tally: Tally) -> str:
    return json.dumps([person, tally])


def _line(field: bytes, value: bytes) -> tuple[tuple[str, Tally], int]:
    return _FIELD.validate_json(field), _COUNT.validate_python(int(value))
