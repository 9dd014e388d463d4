"""Keys of the router's state in Redis, and export of that state to one file.

======================== =======================================================================
``clients``              name -> ``ClientRecord``
``objectives``           name -> ``Objective``
``anchors``              objective -> list of ``Anchor``
``images:{objective}``   SHA-256 -> encoded bytes of the anchors' images
``scores:{objective}``   client, model and anchor -> raw scores of (chosen, rejected)
``gates:{objective}``    version -> ``GateVersion``
``judged:{objective}``   anchor in ``evidence`` -> embedding
``evidence:{objective}`` client -> its score differences for the latest anchors, for the quarantine
``live:{objective}``     client, model, gate version and anchor -> raw scores of the honeypot
``seen:{objective}``     anchor in ``live`` -> embedding
``asked:{objective}``    anchor -> number of times that it was sent as a honeypot
``labellers``            objective -> its checker or judge, secret encrypted
``sampled:{objective}``  the latest labelled pairs of the policy's own responses, as anchors
``audits:{objective}``   live groups that wait for a label, with their pictures
``proposed:{objective}`` proposed pairs that wait for a label, likewise
``groups:{objective}``   live groups from which pairs are proposed
``pairs:{objective}``    uploaded pairs from which some are proposed
``audited:{objective}``  labelled pair -> audit: all clients' raw scores
``tally:{objective}``    outcome -> number of audits that are no longer waiting
``second:{objective}``   audits that wait for a second person's label
``people:{objective}``   person and tally -> number of its answers about audits
``reserve``              key of the draw of held-out anchors
``versions``             counter of gate versions, over all objectives
``state``                ``StateMark``: its absence shows that the server lost all of this; not exported
``influence:{client}``   traces of its scores in the latest rewards; not exported
``recent:{client}``      the latest pairs of raw scores, for the cold start; not exported
``former:{mark}``        name of a removed client that was distrusted, by name, address or token; not exported
``quota:{subject}``      enrolments in the current minute by token, by network, by both; not exported
``auditor:{objective}``  (and audit) person who is labelling it; not exported
``given:{objective}``    (and audit) the label that counts; not exported
``leader:{work}``        lock of the replica that does a piece of work alone; not exported
======================== =======================================================================

All keys share one hash tag, so that they are in one cluster slot.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Literal, Self

from mor_core.errors import Conflict, Invalid
from mor_core.objectives import ObjectiveName
from mor_core.redis_users import ROUTER_PREFIX
from mor_core.stored import StoredEntries
from mor_core.wire import Count, Wire
from pydantic import TypeAdapter, model_validator
from redis.asyncio import Redis

_EXPORTED = StoredEntries("exported", largest=256 << 20)
_NAMES = StoredEntries("objective_names")
_NAME: TypeAdapter[str] = TypeAdapter(ObjectiveName)
_COUNT: TypeAdapter[int] = TypeAdapter(Count)


def key(*parts: str) -> str:
    return ROUTER_PREFIX + ":".join(parts)


CLIENTS = key("clients")
OBJECTIVES = key("objectives")
ANCHORS = key("anchors")
ANCHOR_HOLDOUT = key("reserve")
LABELLERS = key("labellers")
VERSIONS = key("versions")
STATE = key("state")
KINDS = (
    "images",
    "scores",
    "gates",
    "judged",
    "evidence",
    "live",
    "seen",
    "asked",
    "sampled",
    "audits",
    "proposed",
    "groups",
    "pairs",
    "audited",
    "tally",
    "second",
    "people",
)
"""Hashes of each objective."""
_SHARED = ("clients", "objectives", "anchors", "reserve", "labellers")
"""Hashes of all objectives together."""


class RouterSnapshot(Wire):
    """Whole state of a router. Its secrets are encrypted with ``MOR_SECRET_KEY``, which is not part of it."""

    schema_: Literal["mor.router/1"] = "mor.router/1"
    versions: Count
    hashes: dict[str, dict[str, str]]
    """Hash (without the prefix) -> field -> value; binary values in base64."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in self.hashes:
            kind, _, objective = name.partition(":")
            if name not in _SHARED and kind not in KINDS:
                raise ValueError(f"{name[:60]!r} is no hash of an export")
            if name not in _SHARED:
                _NAME.validate_python(objective)
        return self

    def values(self) -> dict[str, dict[str, str | bytes]]:
        """Return the hashes that have fields, with their values as they are stored.

        Raises:
            Invalid: a binary value is no base64.
        """
        try:
            return {
                name: {
                    field: base64.b64decode(value, validate=True) if is_binary(name) else value
                    for field, value in fields.items()
                }
                for name, fields in self.hashes.items()
                if fields
            }
        except ValueError as error:
            raise Invalid("a value of the images or embeddings is no base64; take another export") from error


async def objective_names(redis: Redis) -> list[str]:
    """Return the names of the stored objectives."""
    names: Any = await _NAMES.fetch(redis, "HKEYS", OBJECTIVES)
    return _NAMES.parse_list(names, lambda name: _NAME.validate_python(name.decode()))


def version_number(value: bytes | None) -> int:
    """Parse the counter of gate versions; 0 where there is none, or no number."""
    return _EXPORTED.parse(VERSIONS, value, lambda given: _COUNT.validate_python(int(given))) or 0


def is_binary(name: str) -> bool:
    """Return whether the values of a hash are bytes, not text."""
    return name.startswith(("images:", "judged:", "seen:"))


async def export(redis: Redis, leave_out: Callable[[str], bool] = lambda _: False) -> RouterSnapshot:
    """Read the whole state, without the hashes whose names ``leave_out`` accepts."""
    names = [*_SHARED]
    for objective in await objective_names(redis):
        names += [f"{kind}:{objective}" for kind in KINDS]
    hashes: dict[str, dict[str, str]] = {}
    for name in names:
        if leave_out(name):
            continue
        fields: dict[bytes, bytes] = await _EXPORTED.read(key(name), _EXPORTED.fetch_hash(redis, key(name)), {})
        pairs = _EXPORTED.parse_all(fields, _decode_binary if is_binary(name) else _decode)
        hashes[name] = dict(pairs.values())
    versions = version_number(await _EXPORTED.read(VERSIONS, _EXPORTED.fetch(redis, "GET", VERSIONS), None))
    return RouterSnapshot(versions=versions, hashes=hashes)


def _decode(field: bytes, value: bytes) -> tuple[str, str]:
    return field.decode(), value.decode()


def _decode_binary(field: bytes, value: bytes) -> tuple[str, str]:
    return field.decode(), base64.b64encode(value).decode()


async def forget_client(redis: Redis, client: str) -> None:
    """Delete all that is kept of a removed client beside its record."""
    await redis.delete(key("influence", client), key("recent", client))
    for objective in await objective_names(redis):
        await redis.hdel(key("evidence", objective), client)
        for kind in ("scores", "live"):
            await _delete_fields(redis, key(kind, objective), client)


async def _delete_fields(redis: Redis, name: str, client: str) -> None:
    """Delete the fields of a hash that begin with ``["client",``, as ``scores`` and ``live`` have them."""
    begin = f'["{client}",'.encode()
    async with aclosing(_EXPORTED.fetch_pages(redis, name)) as pages:
        async for page in pages:
            fields = [field for field in page if field.startswith(begin)]
            if fields:
                await redis.hdel(name, *fields)


async def restore(redis: Redis, snapshot: RouterSnapshot, *, replace: bool, installation: str | None = None) -> None:
    """Write ``snapshot`` in one transaction.

    ``installation``: name of the state where the server has none, by default a new one.

    Raises:
        Conflict: the router has state already and ``replace`` is false.
        Invalid: a value of the snapshot cannot be stored.
    """
    existing = await redis.hlen(CLIENTS) + await redis.hlen(OBJECTIVES)
    if existing and not replace:
        raise Conflict(f"this router has {existing} clients and objectives; import with --replace to discard them")
    async with redis.pipeline(transaction=True) as pipe:
        await queue_replacement(redis, pipe, snapshot)
        pipe.hsetnx(STATE, "installation", installation or uuid.uuid4().hex)
        pipe.hincrby(STATE, "epoch", 1)
        pipe.hincrby(STATE, "removals", 1)
        await pipe.execute()


async def queue_replacement(redis: Redis, pipe: Any, snapshot: RouterSnapshot) -> None:
    """Queue the replacement of all state by ``snapshot`` in a transaction.

    Raises:
        Invalid: a value of the snapshot cannot be stored.
    """
    values: Any = snapshot.values()
    present = (await export(redis)).hashes
    known = version_number(await _EXPORTED.read(VERSIONS, _EXPORTED.fetch(redis, "GET", VERSIONS), None))
    left = [key(kind, client) for kind in ("influence", "recent") for client in present["clients"]]
    pipe.multi()
    pipe.delete(*left, *(key(name) for name in {*present, *values, *snapshot.hashes}))
    for name, fields in values.items():
        pipe.hset(key(name), mapping=fields)
    pipe.set(VERSIONS, max(snapshot.versions, known))
