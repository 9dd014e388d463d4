"""Where the router's state lies in Redis, and that state as one file.

======================== =======================================================================
``clients``              name -> ``ClientRecord``
``objectives``           name -> ``Objective``
``anchors``              objective -> list of ``Anchor``
``images:{objective}``   SHA-256 -> encoded bytes of the anchors' images
``scores:{objective}``   client, model and anchor -> the anchor's two raw scores
``gates:{objective}``    version -> ``GateVersion``
``judged:{objective}``   anchor -> embedding, of those that ``evidence`` speaks of
``evidence:{objective}`` client -> what it said of the latest anchors, for its quarantine
``live:{objective}``     client, model, gate version and anchor -> its raw scores of the anchor in disguise
``seen:{objective}``     anchor -> embedding, of those that ``live`` speaks of
``asked:{objective}``    anchor -> how often it was asked in disguise
``labellers``            objective -> its checker or judge, secret encrypted
``sampled:{objective}``  the latest labelled pairs of the policy's own responses, as anchors
``reserve``              the key by which anchors are reserved for that
``versions``             counter of gate versions, over all objectives
``influence:{client}``   what it did to the latest rewards; not exported
``recent:{client}``      the latest pairs of raw scores, for the cold start; not exported
``leader:{work}``        lock of the replica that does work of which there is one; not exported
======================== =======================================================================

All keys share one hash tag, so they live in one cluster slot.
"""

from __future__ import annotations

import base64
from typing import Any, Literal

from mor_core.errors import Conflict
from mor_core.wire import Wire
from redis.asyncio import Redis

_PREFIX = "mor:{router}:"


def key(*parts: str) -> str:
    return _PREFIX + ":".join(parts)


CLIENTS = key("clients")
OBJECTIVES = key("objectives")
ANCHORS = key("anchors")
ANCHOR_HOLDOUT = key("reserve")
LABELLERS = key("labellers")
VERSIONS = key("versions")


KINDS = ("images", "scores", "gates", "judged", "evidence", "live", "seen", "asked", "sampled")
"""Hashes that each objective has."""


class RouterSnapshot(Wire):
    """The router's whole state. Secrets in it are encrypted with ``MOR_SECRET_KEY``, which is not in it."""

    schema_: Literal["mor.router/1"] = "mor.router/1"
    versions: int
    hashes: dict[str, dict[str, str]]
    """Hash, without the prefix -> field -> value; binary values in base64."""


def _binary(name: str) -> bool:
    return name.startswith(("images:", "judged:", "seen:"))


async def export(redis: Redis) -> RouterSnapshot:
    names = ["clients", "objectives", "anchors", "reserve", "labellers"]
    objectives: Any = await redis.hkeys(OBJECTIVES)
    for objective in objectives:
        names += [f"{kind}:{objective.decode()}" for kind in KINDS]
    hashes: dict[str, dict[str, str]] = {}
    for name in names:
        fields: Any = await redis.hgetall(key(name))
        hashes[name] = {
            field.decode(): base64.b64encode(value).decode() if _binary(name) else value.decode()
            for field, value in fields.items()
        }
    return RouterSnapshot(versions=int(await redis.get(VERSIONS) or 0), hashes=hashes)


async def restore(redis: Redis, snapshot: RouterSnapshot, *, replace: bool) -> None:
    """Put ``snapshot`` back in one transaction.

    Raises:
        Conflict: there is state already and ``replace`` is false.
    """
    existing = await redis.hlen(CLIENTS) + await redis.hlen(OBJECTIVES)
    if existing and not replace:
        raise Conflict(f"this router has {existing} clients and objectives; import with --replace to discard them")
    stale = (await export(redis)).hashes
    async with redis.pipeline(transaction=True) as pipe:
        for name in stale:
            pipe.delete(key(name))
        for name, fields in snapshot.hashes.items():
            if fields:
                pipe.hset(
                    key(name),
                    mapping={
                        field: base64.b64decode(value) if _binary(name) else value for field, value in fields.items()
                    },
                )
        pipe.set(VERSIONS, max(snapshot.versions, int(await redis.get(VERSIONS) or 0)))
        await pipe.execute()
