"""Store of the objectives: name, text, anchor set, and the active gate version."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mor_core.errors import Conflict, Invalid, NotFound
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stored import StoredEntries
from mor_core.stored_objectives import COLD_START, NewObjective, Objective, ObjectiveChange
from mor_core.wire import Messages, PromptOrigin, Sha256, Wire, image_hashes
from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import WatchError

from mor_router.state_mark import count_removal, read_whole, require_state
from mor_router.store import ANCHORS, KINDS, LABELLERS, OBJECTIVES, STATE, key

__all__ = ["COLD_START", "Anchor", "Objective", "ObjectiveStore"]

_MOST_UPDATE_ATTEMPTS = 20
"""Optimistic attempts of one update; each lost one means that another writer got through."""
_MOST_SAMPLED = 512
"""Labelled pairs of the policy that are kept, so that old policies' responses leave the fits."""
_SAMPLED = "anchors"


class Anchor(Wire):
    """Preference pair of the server's own."""

    id: str
    digest: Sha256
    """Hash of question, pictures and both responses; scores are cached under it."""
    messages: Messages
    chosen: str
    rejected: str
    domain: str | None
    """For reports and the clients' ``asks`` rules; never an input of the gate."""
    public: bool = False
    """Question and pictures are marked as public: at the upload, or as the source of a live group."""
    others: tuple[str, ...] = ()
    """Further responses to the same question, if any; a honeypot group is filled with them."""
    sample: tuple[str, ...] = ()
    """All responses as the policy drew them, with its repetitions; empty: uploaded, audited, or stored without."""
    policy: str | None = None
    """Run and weights version that sampled the responses; null: uploaded."""
    audited: bool = False
    """True for a pair of an audited group: clients scored it in live traffic, and are not shown it again, because that
    would reveal which groups were audited."""
    live_question: bool = False
    """True for responses to the question of an audited group that no client has seen: only honeypots send them, because
    at a fit the question would reveal the audit."""

    @property
    def origin(self) -> PromptOrigin:
        return PromptOrigin(self.domain, self.public)


def digest_of(messages: Messages, chosen: str, rejected: str) -> str:
    """Return the digest that identifies an anchor."""
    identity = json.dumps([[message.model_dump(mode="json") for message in messages], chosen, rejected])
    return hashlib.sha256(identity.encode()).hexdigest()


def _image_hashes(anchors: Iterable[Anchor]) -> set[str]:
    return {digest for anchor in anchors for digest in image_hashes(anchor.messages)}


_ANCHORS = TypeAdapter(tuple[Anchor, ...])
_OBJECTIVE_ENTRIES = StoredEntries("objectives")
_ANCHOR_ENTRIES = StoredEntries("anchors", largest=256 << 20)
_IMAGE_ENTRIES = StoredEntries("anchor_images", largest=64 << 20)


def _parse_anchors(value: bytes) -> tuple[Anchor, ...]:
    return _ANCHORS.validate_json(value, extra="ignore")


def _objective(name: str, value: bytes) -> Objective:
    """Parse the objective that is stored under ``name``.

    Raises:
        ValueError: it does not fit.
        Invalid: it is another one.
    """
    objective = Objective.model_validate_json(value, extra="ignore")
    if objective.name != name:
        raise Invalid("an objective is stored under another name")
    return objective


def _picture(digest: str, content: bytes) -> bytes:
    """Check the bytes of a picture.

    Raises:
        Invalid: they are not those of ``digest``.
    """
    if hashlib.sha256(content).hexdigest() != digest:
        raise Invalid("the content does not have the hash that is its name")
    return content


class ObjectiveStore:
    """Store of the objectives and their anchors."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def all_whole(self) -> list[Objective]:
        """Return every objective, as ``all`` does, unless the queue server lost the router's state.

        Raises:
            Unavailable: it did, and the state is not restored yet.
        """
        return await read_whole(self._redis, self.all)

    async def all(self) -> list[Objective]:
        """Return every objective that can be read, sorted by name."""
        stored = await _OBJECTIVE_ENTRIES.fetch_hash(self._redis, OBJECTIVES)
        found = _OBJECTIVE_ENTRIES.parse_all(stored, lambda name, value: _objective(name.decode(), value))
        return sorted(found.values(), key=lambda objective: objective.name)

    async def get(self, name: str) -> Objective:
        """Return one objective.

        Raises:
            NotFound: no such objective.
            Conflict: it cannot be read.
        """
        value = await _OBJECTIVE_ENTRIES.fetch(self._redis, "HGET", OBJECTIVES, name)
        if value is None:
            raise NotFound(f"no objective {name!r}; 'mor objective create' makes one")
        objective = _OBJECTIVE_ENTRIES.parse(name, value, lambda given: _objective(name, given))
        if objective is None:
            raise Conflict(
                f"the stored objective {name!r} cannot be read (the log has the reason); DELETE it and create it "
                "again, or restore it from an export"
            )
        return objective

    async def add(self, request: NewObjective) -> Objective:
        """Add an objective.

        Raises:
            Conflict: the name is taken, or other requests keep changing the objectives.
            Unavailable: the queue server lost the objectives, and they are not restored yet.
        """
        objective = Objective(**dict(request), created_at=SERVER_CLOCK.now())
        for _ in range(_MOST_UPDATE_ATTEMPTS):
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(STATE)
                await require_state(self._redis)
                pipe.multi()  # type: ignore[no-untyped-call]
                pipe.hsetnx(OBJECTIVES, objective.name, objective.model_dump_json())
                try:
                    [added] = await pipe.execute()
                except WatchError:
                    continue
            if added:
                return objective
            raise Conflict(f"objective {objective.name!r} exists already; choose another name or DELETE it first")
        raise Conflict(f"objective {objective.name!r}: the state is being changed by other requests; try again")

    async def change(self, name: str, request: ObjectiveChange) -> Objective:
        """Change the fields of an objective that ``request`` has.

        Raises:
            NotFound: no such objective.
        """
        changes = {field: getattr(request, field) for field in request.model_fields_set}
        return await self._update(name, lambda objective: objective.model_copy(update=changes))

    async def remove(self, name: str) -> None:
        """Delete an objective with its anchors, cached scores and gate versions.

        Raises:
            NotFound: no such objective.
        """
        if not await self._redis.hexists(OBJECTIVES, name):
            raise NotFound(f"no objective {name!r}; 'mor objective create' makes one")
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(OBJECTIVES, name)
            pipe.hdel(ANCHORS, name)
            pipe.hdel(LABELLERS, name)
            count_removal(pipe)
            pipe.delete(*(key(kind, name) for kind in KINDS))
            await pipe.execute()

    async def put_anchors(self, name: str, anchors: Sequence[Anchor], images: Mapping[str, bytes]) -> Objective:
        """Replace the whole anchor set in one transaction.

        Raises:
            NotFound: no such objective.
            Conflict: other requests keep changing the objective.
        """
        mapping: dict[Any, Any] = dict(images)  # redis types keys of mappings invariantly

        def queue(pipe: Pipeline) -> None:
            pipe.hset(ANCHORS, name, _ANCHORS.dump_json(tuple(anchors)))
            pipe.delete(key("images", name), key("sampled", name))
            if images:
                pipe.hset(key("images", name), mapping=mapping)

        return await self._update(name, lambda objective: objective.model_copy(update={"anchors": len(anchors)}), queue)

    async def anchors(self, name: str) -> tuple[Anchor, ...]:
        """Return the uploaded anchors and the latest labelled pairs of the policy's own responses.

        Raises:
            Conflict: no anchors were uploaded, or they cannot be read.
        """
        return (*await self.uploaded(name), *await self._sampled(name))

    async def _sampled(self, name: str) -> tuple[Anchor, ...]:
        """Return the labelled pairs of the policy's own responses; none where they cannot be read."""
        place = key("sampled", name)
        value: Any = await _ANCHOR_ENTRIES.read(
            place, _ANCHOR_ENTRIES.fetch(self._redis, "HGET", place, _SAMPLED), None
        )
        return await asyncio.to_thread(_ANCHOR_ENTRIES.parse, place, value, _parse_anchors) or ()

    async def uploaded(self, name: str) -> tuple[Anchor, ...]:
        """Return the uploaded anchors.

        Raises:
            Conflict: no anchors were uploaded, or they cannot be read.
        """
        value = await _ANCHOR_ENTRIES.fetch(self._redis, "HGET", ANCHORS, name)
        if value is None:
            raise Conflict(f"objective {name!r} has no anchors; set them with 'mor objective anchors {name} FILE'")
        anchors = await asyncio.to_thread(_ANCHOR_ENTRIES.parse, name, value, _parse_anchors)
        if anchors is None:
            raise Conflict(
                f"the stored anchors of {name!r} cannot be read; set them again with "
                f"'mor objective anchors {name} FILE'"
            )
        return anchors

    async def add_sampled(self, name: str, anchors: Sequence[Anchor], images: Mapping[str, bytes] | None = None) -> int:
        """Add labelled pairs of the policy's own responses, and the images of new questions by hash; keep the latest
        512 pairs, and return how many are kept.

        Raises:
            Conflict: other requests keep changing the pairs.
        """

        def added(known: Iterable[Anchor]) -> tuple[Anchor, ...]:
            return tuple({anchor.digest: anchor for anchor in (*known, *anchors)}.values())[-_MOST_SAMPLED:]

        return await self._change_sampled(name, added, images)

    async def remove_sampled(self, name: str, digests: Iterable[str]) -> None:
        """Remove pairs of audited groups and proposed pairs, and the images that no other pair names.

        Raises:
            Conflict: other requests keep changing the pairs.
        """
        gone = frozenset(digests)

        def left(known: Iterable[Anchor]) -> tuple[Anchor, ...]:
            labels = {anchor.digest for anchor in known if anchor.audited or anchor.policy is None} & gone
            return tuple(anchor for anchor in known if anchor.digest not in labels)

        await self._change_sampled(name, left)

    async def _change_sampled(
        self,
        name: str,
        change: Callable[[Iterable[Anchor]], tuple[Anchor, ...]],
        images: Mapping[str, bytes] | None = None,
    ) -> int:
        """Apply ``change`` to the labelled pairs, add ``images``, and return the number of pairs."""
        place, pictures = key("sampled", name), key("images", name)

        async def attempt() -> int | None:
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(place)
                stored = await _ANCHOR_ENTRIES.fetch(self._redis, "HGET", place, _SAMPLED)
                known = await asyncio.to_thread(_ANCHOR_ENTRIES.parse, place, stored, _parse_anchors) or ()
                latest = change(known)
                kept = {anchor.digest for anchor in latest}
                gone = [anchor for anchor in known if anchor.digest not in kept]
                unused = await self._unused_images(name, gone, latest)
                content = await asyncio.to_thread(_ANCHORS.dump_json, latest)
                pipe.multi()  # type: ignore[no-untyped-call]
                pipe.hset(place, _SAMPLED, content)
                if images:
                    mapping: dict[Any, Any] = dict(images)
                    pipe.hset(pictures, mapping=mapping)
                if unused:
                    pipe.hdel(pictures, *unused)
                try:
                    await pipe.execute()
                except WatchError:
                    return None
                return len(latest)

        for _ in range(_MOST_UPDATE_ATTEMPTS):
            count = await _ANCHOR_ENTRIES.write(self._redis, {place: "hash"}, attempt)
            if count is not None:
                return count
        raise Conflict(f"the sampled pairs of {name!r} are being changed by other requests; try again")

    async def _unused_images(self, name: str, gone: Sequence[Anchor], kept: Sequence[Anchor]) -> set[str]:
        """Return the images of the pairs that are ``gone`` which no other pair names."""
        images = _image_hashes(gone) - _image_hashes(kept)
        if not images or not await self._redis.hexists(ANCHORS, name):
            return images
        return images - _image_hashes(await self.uploaded(name))

    async def images(self, name: str, anchors: Sequence[Anchor]) -> dict[str, bytes]:
        """Return the images that ``anchors`` name, by hash.

        Raises:
            Conflict: one is gone, or has other bytes.
        """
        wanted = list(dict.fromkeys(digest for anchor in anchors for digest in image_hashes(anchor.messages)))
        if not wanted:
            return {}
        place = key("images", name)
        stored: list[Any] = await _IMAGE_ENTRIES.read(
            place, _IMAGE_ENTRIES.fetch(self._redis, "HMGET", place, *wanted), [None] * len(wanted)
        )
        pairs = dict(zip(wanted, stored, strict=True))
        found = await asyncio.to_thread(_IMAGE_ENTRIES.parse_all, pairs, _picture)
        if len(found) < len(wanted):
            raise Conflict(
                f"{len(wanted) - len(found)} pictures of the anchors of {name!r} are gone or altered; "
                f"set them again with 'mor objective anchors {name} FILE'"
            )
        return found

    async def activate(self, name: str, version: int) -> Objective:
        """Activate a gate version and add the present one to the history."""

        def change(objective: Objective) -> Objective:
            if objective.active == version:
                return objective
            history = (*objective.history, objective.active)
            return objective.model_copy(update={"active": version, "history": history})

        return await self._update(name, change)

    async def roll_back(self, name: str, *, to_uniform: bool = False) -> Objective:
        """Activate the version before the present one. ``to_uniform``: also the state before the first version.

        Raises:
            Conflict: there was none, or none but that state.
        """

        def change(objective: Objective) -> Objective:
            if not objective.history:
                raise Conflict(
                    f"objective {name!r} has had no gate version before {objective.active or 'its first fit'}; "
                    f"activate another one: mor objective activate {name} VERSION"
                )
            if objective.history[-1] == COLD_START and not to_uniform:
                raise Conflict(
                    f"gate version {objective.active} of objective {name!r} is its first: before it all clients had "
                    f"the same weight. To return to that: mor objective rollback {name} --to-uniform (to_uniform=true)"
                )
            return objective.model_copy(update={"active": objective.history[-1], "history": objective.history[:-1]})

        return await self._update(name, change)

    async def _update(
        self, name: str, change: Callable[[Objective], Objective], queue: Callable[[Pipeline], None] = lambda _: None
    ) -> Objective:
        """Apply ``change`` to an objective, with what ``queue`` adds to the transaction.

        Raises:
            NotFound: no such objective.
            Conflict: other requests keep changing the objective.
        """
        for _ in range(_MOST_UPDATE_ATTEMPTS):
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(OBJECTIVES)
                objective = change(await self.get(name))
                pipe.multi()  # type: ignore[no-untyped-call]
                queue(pipe)
                pipe.hset(OBJECTIVES, name, objective.model_dump_json())
                try:
                    await pipe.execute()
                except WatchError:
                    continue
                return objective
        raise Conflict(f"objective {name!r} is being changed by other requests; try again")
