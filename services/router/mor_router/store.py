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
``audited:{objective}``  labelled pair -> audit: all clients' raw scores
``tally:{objective}``    outcome -> number of audits that are no longer waiting
``reserve``              key of the draw of held-out anchors
``versions``             counter of gate versions, over all objectives
``influence:{client}``   traces of its scores in the latest rewards; not exported
``recent:{client}``      the latest pairs of raw scores, for the cold start; not exported
``auditor:{objective}``  (and audit) person who is labelling it; not exported
``leader:{work}``        lock of the replica that does a piece of work alone; not exported
======================== =======================================================================

All keys share one hash tag, so that they are in one cluster slot.
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
    "audited",
    "tally",
)
"""Hashes of each objective."""


class RouterSnapshot(Wire):
    """Whole state of a router. Its secrets are encrypted with ``MOR_SECRET_KEY``, which is not part of it."""

    schema_: Literal["mor.router/1"] = "mor.router/1"
    versions: int
    hashes: dict[str, dict[str, str]]
    """Hash (without the prefix) -> field -> value; binary values in base64."""


def _binary(name: str) -> bool:
    return name.startswith(("images:", "judged:", "seen:"))


async def export(redis: Redis) -> RouterSnapshot:
    """Read the whole state."""
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
    """Write ``snapshot`` in one transaction.

    Raises:
        Conflict: the router has state already and ``replace`` is false.
    """
    existing = await redis.hlen(CLIENTS) + await redis.hlen(OBJECTIVES)
    if existing and not replace:
        raise Conflict(f"this router has {existing} clients and objectives; import with --replace to discard them")
    present = (await export(redis)).hashes
    async with redis.pipeline(transaction=True) as pipe:
        for name in present:
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
