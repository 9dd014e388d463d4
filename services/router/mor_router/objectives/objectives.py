"""Objectives: a name, a text, an anchor set, and which gate version is in force."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mor_core.errors import Conflict, NotFound
from mor_core.stored_objectives import COLD_START, Objective
from mor_core.wire import Messages, Sha256, Wire, image_hashes
from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.exceptions import WatchError

from mor_router.store import ANCHORS, KINDS, LABELLERS, OBJECTIVES, key

__all__ = ["COLD_START", "Anchor", "Objective", "Objectives"]

_CONTENTION = 20
_MOST_SAMPLED = 512
_SAMPLED = "anchors"


class Anchor(Wire):
    """A preference pair of the server's own."""

    id: str
    digest: Sha256
    """Hash of question, pictures and both responses: scores are cached under it."""
    messages: Messages
    chosen: str
    rejected: str
    domain: str | None
    """For reports only."""
    others: tuple[str, ...] = ()
    """Further responses to the same question, where there are: what stands beside the two in a group."""
    policy: str | None = None
    """Run and weights version that gave the responses; null: uploaded."""


def digest_of(messages: Messages, chosen: str, rejected: str) -> str:
    """The identity of an anchor."""
    identity = json.dumps([[message.model_dump(mode="json") for message in messages], chosen, rejected])
    return hashlib.sha256(identity.encode()).hexdigest()


_ANCHORS = TypeAdapter(tuple[Anchor, ...])


class Objectives:
    """The objectives in the store."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def all(self) -> list[Objective]:
        values = (await self._redis.hgetall(OBJECTIVES)).values()
        return sorted((Objective.model_validate_json(value) for value in values), key=lambda found: found.name)

    async def get(self, name: str) -> Objective:
        """
        Raises:
            NotFound: no such objective.
        """
        value = await self._redis.hget(OBJECTIVES, name)
        if value is None:
            raise NotFound(f"no objective {name!r}; POST /v1/objectives makes one")
        return Objective.model_validate_json(value)

    async def add(self, name: str, text: str, paraphrases: Sequence[str]) -> Objective:
        """
        Raises:
            Conflict: the name is taken.
        """
        objective = Objective(name=name, text=text, paraphrases=tuple(paraphrases), created_at=time.time())
        if not await self._redis.hsetnx(OBJECTIVES, name, objective.model_dump_json()):
            raise Conflict(f"objective {name!r} exists already; choose another name or DELETE it first")
        return objective

    async def rephrase(self, name: str, paraphrases: Sequence[str]) -> Objective:
        """Replace the other wordings.

        Raises:
            NotFound: no such objective.
        """
        return await self._update(
            name, lambda objective: objective.model_copy(update={"paraphrases": tuple(paraphrases)})
        )

    async def remove(self, name: str) -> None:
        """The objective with its anchors, cached scores and gate versions.

        Raises:
            NotFound: no such objective.
        """
        await self.get(name)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(OBJECTIVES, name)
            pipe.hdel(ANCHORS, name)
            pipe.hdel(LABELLERS, name)
            pipe.delete(*(key(kind, name) for kind in KINDS))
            await pipe.execute()

    async def put_anchors(self, name: str, anchors: Sequence[Anchor], images: Mapping[str, bytes]) -> Objective:
        """Replace the anchor set, all of it or nothing.

        Raises:
            NotFound: no such objective.
        """
        objective = (await self.get(name)).model_copy(update={"anchors": len(anchors)})
        async with self._redis.pipeline(transaction=True) as pipe:
            mapping: dict[Any, Any] = dict(images)  # redis types keys of mappings invariantly
            pipe.hset(ANCHORS, name, _ANCHORS.dump_json(tuple(anchors)))
            pipe.delete(key("images", name), key("sampled", name))
            if images:
                pipe.hset(key("images", name), mapping=mapping)
            pipe.hset(OBJECTIVES, name, objective.model_dump_json())
            await pipe.execute()
        return objective

    async def anchors(self, name: str) -> tuple[Anchor, ...]:
        """Those that were uploaded, and the latest labelled pairs of the policy's own responses.

        Raises:
            Conflict: none were uploaded.
        """
        sampled = await self._redis.hget(key("sampled", name), _SAMPLED)
        return (*await self.uploaded(name), *(_ANCHORS.validate_json(sampled) if sampled is not None else ()))

    async def uploaded(self, name: str) -> tuple[Anchor, ...]:
        """
        Raises:
            Conflict: none were uploaded.
        """
        value = await self._redis.hget(ANCHORS, name)
        if value is None:
            raise Conflict(f"objective {name!r} has no anchors; PUT /v1/objectives/{name}/anchors first")
        return await asyncio.to_thread(_ANCHORS.validate_json, value)

    async def add_sampled(self, name: str, anchors: Sequence[Anchor]) -> int:
        """Keep labelled pairs of the policy's own responses, the latest 512; how many there are."""
        stored = await self._redis.hget(key("sampled", name), _SAMPLED)
        known = {anchor.digest: anchor for anchor in (_ANCHORS.validate_json(stored) if stored is not None else ())}
        latest = tuple({**known, **{anchor.digest: anchor for anchor in anchors}}.values())[-_MOST_SAMPLED:]
        await self._redis.hset(key("sampled", name), _SAMPLED, _ANCHORS.dump_json(latest))
        return len(latest)

    async def images(self, name: str, anchors: Sequence[Anchor]) -> dict[str, bytes]:
        """The images that ``anchors`` name."""
        wanted = list(dict.fromkeys(digest for anchor in anchors for digest in image_hashes(anchor.messages)))
        if not wanted:
            return {}
        found: Any = await self._redis.hmget(key("images", name), wanted)
        return dict(zip(wanted, found, strict=True))

    async def activate(self, name: str, version: int) -> Objective:
        """Put a gate version in force; the one before it goes into the history."""

        def change(objective: Objective) -> Objective:
            if objective.active == version:
                return objective
            history = (*objective.history, objective.active)
            return objective.model_copy(update={"active": version, "history": history})

        return await self._update(name, change)

    async def roll_back(self, name: str) -> Objective:
        """Put the version in force that was before.

        Raises:
            Conflict: there was none.
        """

        def change(objective: Objective) -> Objective:
            if not objective.history:
                raise Conflict(f"objective {name!r} has had no gate version before {objective.active}")
            return objective.model_copy(update={"active": objective.history[-1], "history": objective.history[:-1]})

        return await self._update(name, change)

    async def _update(self, name: str, change: Callable[[Objective], Objective]) -> Objective:
        for _ in range(_CONTENTION):
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(OBJECTIVES)
                objective = change(await self.get(name))
                pipe.multi()  # type: ignore[no-untyped-call]
                pipe.hset(OBJECTIVES, name, objective.model_dump_json())
                try:
                    await pipe.execute()
                except WatchError:
                    continue
                return objective
        raise Conflict(f"objective {name!r} is being changed by others; try again")
