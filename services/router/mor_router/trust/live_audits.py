"""Store of audits: live groups that were chosen after the clients had answered, without a label and with one.

A group waits with its question, pictures and responses until it has a label. The labelled audit keeps what the tests of
the clients need: raw scores, weights and slopes, and the labelled pair.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
import structlog
from jaxtyping import Float
from mor_core.wire import Finite, Messages, ModelRef, Sha256, Wire, image_hashes
from numpy import ndarray
from pydantic import ConfigDict, Field, NonNegativeInt, ValidationError, model_validator
from redis.asyncio import Redis

from mor_router import metrics
from mor_router.objectives.objective_store import Anchor, ObjectiveStore, digest_of
from mor_router.store import key

_MOST_WAITING = 256
"""Groups of one objective that wait for a label; the oldest ones are dropped."""
_MOST_WAITING_BYTES = 64 << 20
"""Bytes of one objective's waiting groups: pictures, question and responses."""
_MOST_LABELLED = 2000
"""Labelled audits of one objective. When there are more, the older half goes: the tests then begin anew with the other
half, which costs one further chance of a false alarm, where dropping one at a time would cost one each."""
_MOST_PAIRS = 256
"""Labelled pairs kept of one group, the clearest ones: all pairs of 23 responses."""
_NAME_DIGITS = 12
"""Hexadecimal digits of the time in an audit's name: milliseconds, for 8,900 years. The KiB of its content follow, so
that the bounds need no look at the stored groups."""
_NAME = re.compile(rf"[0-9a-f]{{{_NAME_DIGITS}}}-[0-9a-f]{{1,8}}-[A-Za-z0-9_-]{{1,40}}")

Outcome = Literal["labelled", "undecided", "skipped", "dropped", "given_up"]

log = structlog.get_logger(__name__)


class AuditScores(Wire):
    """One client's answer for an audited group."""

    client: str
    model: ModelRef
    raw: tuple[Finite, ...]
    standardised: tuple[Finite, ...] | None
    """``None`` for a shadow, which has no standardiser of the gate."""
    weight: Finite
    slope: Finite
    """Logits per standardised unit at this input; 0 for a shadow."""


class _Audit(Wire):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    at: float
    """Unix time at which the clients had answered, seconds."""
    gate: int
    """Gate version of the reward; 0: cold start."""
    policy: str
    """Run and weights version that sampled the responses."""
    probability: float
    """Probability with which the group was chosen."""
    support: float
    """1 where the anchors cover the input, towards 0 far from all of them: how far the fit vouches for the weights."""
    rewards: tuple[Finite, ...]
    clients: tuple[AuditScores, ...]
    embedding: bytes = Field(repr=False)
    """Embedding of the input, float32."""
    pair: tuple[NonNegativeInt, NonNegativeInt]
    situations: tuple[str, ...] = ()
    """What a client could see of the group, see ``mathematics.suspicion``."""
    suspects: tuple[str, ...] = ()
    """Clients that were suspected in such groups when it was chosen."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        responses = len(self.rewards)
        raw = {len(scores) for line in self.clients for scores in (line.raw, line.standardised) if scores is not None}
        if raw - {responses} or max(self.pair) >= responses or len(self.embedding) % np.dtype(np.float32).itemsize:
            raise ValueError(f"scores of {sorted(raw)} and pair {self.pair} do not fit {responses} rewards")
        return self


class LiveAudit(_Audit):
    """An audited group that waits for a label."""

    messages: Messages
    responses: tuple[str, ...]
    images: dict[Sha256, bytes] = Field(repr=False)
    pair: tuple[NonNegativeInt, NonNegativeInt]
    """Two different responses drawn at random, in random order: what a person compares."""

    @model_validator(mode="after")
    def _check_responses(self) -> Self:
        if len(self.responses) != len(self.rewards) or not {*image_hashes(self.messages)} <= self.images.keys():
            raise ValueError(f"{len(self.responses)} responses and {len(self.images)} images do not fit the group")
        return self


class LabelledAudit(_Audit):
    """An audited group with its label."""

    pair: tuple[NonNegativeInt, NonNegativeInt]
    """Indices of the better and of the worse response: the clearest of ``pairs``."""
    pairs: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()
    """All labelled pairs; audits of earlier versions have ``pair`` alone."""
    labelled_at: float
    by: str
    """Labeller, or name of the person's token."""

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if any(max(pair) >= len(self.rewards) for pair in self.pairs):
            raise ValueError(f"labelled pairs {self.pairs} do not fit {len(self.rewards)} rewards")
        return self


def draw_pair(responses: Sequence[str]) -> tuple[int, int] | None:
    """Draw two different responses in random order; ``None`` where all are alike."""
    first = secrets.randbelow(len(responses))
    others = [place for place, text in enumerate(responses) if text != responses[first]]
    if not others:
        return None
    pair = first, secrets.choice(others)
    return pair if secrets.randbelow(2) else (pair[1], pair[0])


class AuditStore:
    """Audits by objective, in Redis."""

    def __init__(self, redis: Redis, objectives: ObjectiveStore) -> None:
        self._redis = redis
        self._objectives = objectives

    async def add(self, objective: str, audit: LiveAudit) -> None:
        """Store a group that waits for a label, and drop the oldest ones over the bounds."""
        name = f"{round(1000 * audit.at):0{_NAME_DIGITS}x}-{_kibibytes(audit):x}-{secrets.token_urlsafe(8)}"
        value = await asyncio.to_thread(audit.model_dump_json)
        await self._redis.hset(key("audits", objective), name, value)
        names = await self.waiting(objective)
        total = sum(map(_size, names))
        for place, oldest in enumerate(names):
            if len(names) - place <= _MOST_WAITING and total <= _MOST_WAITING_BYTES:
                break
            await self.close(objective, oldest, "dropped")
            total -= _size(oldest)

    async def waiting(self, objective: str) -> list[str]:
        """Return the names of the waiting groups, oldest first."""
        names: Any = await self._redis.hkeys(key("audits", objective))
        return sorted(name for known in names if _NAME.fullmatch(name := known.decode(errors="replace")))

    async def get(self, objective: str, name: str) -> LiveAudit | None:
        """Return a waiting group; ``None`` where it waits no longer."""
        value: Any = await self._redis.hget(key("audits", objective), name)
        if value is None:
            return None
        try:
            return await asyncio.to_thread(LiveAudit.model_validate_json, value)
        except ValidationError as error:
            log.error("a stored audit is not readable and goes", objective=objective, problems=error.error_count())
            await self.close(objective, name, "dropped")
            return None

    async def close(self, objective: str, name: str, outcome: Outcome) -> bool:
        """Remove a waiting group that gets no label; return whether it still waited."""
        removed = bool(await self._redis.hdel(key("audits", objective), name))
        if removed:
            await self._count(objective, outcome)
        return removed

    async def settle(
        self, objective: str, name: str, audit: LiveAudit, pairs: Sequence[tuple[int, int]], by: str
    ) -> bool:
        """Replace a waiting group by the labelled audit, and add its first pair to the anchors; return whether it
        still waited. ``pairs``: indices of the better and of the worse response, the clearest pair first.

        The same pair under the same question counts once. After a crash in between, the same label may be given again.
        """
        shared = {field: getattr(audit, field) for field in _Audit.model_fields if field != "pair"}
        kept = tuple(pairs[:_MOST_PAIRS])
        labelled = LabelledAudit(**shared, pair=kept[0], pairs=kept, labelled_at=time.time(), by=by)
        anchor = _anchor(audit, kept[0])
        await self._objectives.add_sampled(objective, [anchor], audit.images)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hsetnx(key("audited", objective), anchor.digest, labelled.model_dump_json())
            pipe.hdel(key("audits", objective), name)
            removed = bool((await pipe.execute())[1])
        if removed:
            await self._count(objective, "labelled")
        return removed

    async def labelled(self, objective: str) -> dict[str, LabelledAudit]:
        """Return the labelled audits by the digest of their pair, in the order of their calls."""
        stored: Any = await self._redis.hgetall(key("audited", objective))
        return await asyncio.to_thread(_parsed, stored)

    async def prune(self, objective: str) -> None:
        """Delete the older half of the labelled audits, where there are too many."""
        found = list(await self.labelled(objective))
        if len(found) > _MOST_LABELLED:
            await self._redis.hdel(key("audited", objective), *found[: len(found) // 2])

    async def count_labelled(self, objective: str) -> int:
        return int(await self._redis.hlen(key("audited", objective)))

    async def closed(self, objective: str) -> dict[str, int]:
        """Return the number of all groups that are no longer waiting, by outcome."""
        stored: Any = await self._redis.hgetall(key("tally", objective))
        known = {outcome: stored.get(outcome.encode(), b"") for outcome in sorted(get_args(Outcome))}
        return {outcome: int(count) for outcome, count in known.items() if count.isdigit()}

    async def _count(self, objective: str, outcome: Outcome) -> None:
        metrics.AUDITS.labels(objective, outcome).inc()
        await self._redis.hincrby(key("tally", objective), outcome, 1)


def _kibibytes(audit: LiveAudit) -> int:
    """Return the size of what clients saw of a group, which tells a person nothing about their scores."""
    texts = [message.text for message in audit.messages] + list(audit.responses)
    return 1 + (sum(map(len, audit.images.values())) + sum(len(text.encode()) for text in texts)) // 1024


def _size(name: str) -> int:
    """Return the bytes that the name of an audit states."""
    return 1024 * int(name.split("-")[1], 16)


def chosen_at(name: str) -> float:
    """Return the Unix time, in seconds, at which the audit of this name was chosen."""
    return int(name[:_NAME_DIGITS], 16) / 1000


def embeddings(audits: Mapping[str, LabelledAudit]) -> dict[str, Float[ndarray, " features"]]:
    """Return the embeddings of the audits' inputs, by digest."""
    return {digest: np.frombuffer(audit.embedding, np.float32) for digest, audit in audits.items()}


def pairs_of(
    audits: Iterable[tuple[str, LabelledAudit]], client: str, model: ModelRef | None, since: float
) -> dict[str, tuple[float, float]]:
    """Return a client's raw scores of (better, worse) by digest, from audits of its ``model`` after ``since``."""
    return {
        digest: (line.raw[audit.pair[0]], line.raw[audit.pair[1]])
        for digest, audit in audits
        if audit.at > since
        for line in audit.clients
        if line.client == client and line.model == model
    }


def _anchor(audit: LiveAudit, pair: tuple[int, int]) -> Anchor:
    chosen, rejected = (audit.responses[place] for place in pair)
    digest = digest_of(audit.messages, chosen, rejected)
    return Anchor(
        id=f"audit-{digest[:16]}@{audit.policy}",
        digest=digest,
        messages=audit.messages,
        chosen=chosen,
        rejected=rejected,
        domain=None,
        others=tuple(dict.fromkeys(text for text in audit.responses if text not in (chosen, rejected))),
        policy=audit.policy,
        audited=True,
    )


def _parsed(stored: Mapping[bytes, bytes]) -> dict[str, LabelledAudit]:
    found = {}
    for digest, value in stored.items():
        try:
            found[digest.decode(errors="replace")] = LabelledAudit.model_validate_json(value)
        except ValidationError as error:
            log.error("a labelled audit is not readable and does not count", problems=error.error_count())
    return dict(sorted(found.items(), key=lambda item: item[1].at))
