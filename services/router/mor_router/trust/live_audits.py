"""Store of audits: live groups that were chosen after the clients had answered, without a label and with one.

A group waits with its question, pictures and responses until it has a label. The labelled audit keeps what the tests of
the clients need: raw scores, weights and slopes, and the labelled pair.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
from jaxtyping import Float
from mor_core.errors import Invalid
from mor_core.image_budget import check_named
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stored import StoredEntries
from mor_core.wire import Count, Finite, Messages, ModelRef, Sha256, Wire, image_hashes
from numpy import ndarray
from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter, model_validator
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mor_router import metrics
from mor_router.objectives.objective_store import Anchor, ObjectiveStore, digest_of
from mor_router.store import ENDLESS, key

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

_CLAIM_S = 900
"""Seconds for which a group is one label's: long enough for all that it may run into to end."""

Outcome = Literal["labelled", "undecided", "skipped", "dropped", "given_up", "disputed", "withdrawn"]

_DIGEST: TypeAdapter[str] = TypeAdapter(Sha256)
_COUNT: TypeAdapter[int] = TypeAdapter(Count)
_WAITING = StoredEntries("audits", largest=2 * _MOST_WAITING_BYTES)  # base64 and JSON lengthen what is waiting
_LABELLED = StoredEntries("labelled_audits", largest=16 << 20)
_TALLY = StoredEntries("audit_tally")
_CLAIMS = StoredEntries("audit_claims", largest=1 << 10)
_LABELLER = "labeller"
"""``by`` of a label that the objective's labeller gave. A person's token may have the same name."""


class AuditScores(Wire):
    """One client's answer for an audited group."""

    client: str
    model: ModelRef
    raw: tuple[Finite, ...]
    standardised: tuple[Finite, ...] | None
    """``None`` for a shadow, which has no standardiser of the gate."""
    weight: Finite
    """Gate weight over all clients of the gate, whichever of them answered; 0 for a shadow."""
    slope: Finite
    """Logits per standardised unit at this input; 0 for a shadow."""


class _Audit(Wire):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    at: Finite
    """Unix time at which the clients had answered, seconds."""
    gate: int
    """Gate version of the reward; 0: cold start."""
    policy: str
    """Run and weights version that sampled the responses."""
    probability: float = Field(gt=0, le=1)
    """Probability with which the group was chosen."""
    support: Finite
    """1 where the anchors cover the input, towards 0 far from all of them: how far the fit vouches for the weights."""
    rewards: tuple[Finite, ...]
    clients: tuple[AuditScores, ...]
    embedding: bytes = Field(repr=False)
    """Embedding of the input, float32."""
    pair: tuple[NonNegativeInt, NonNegativeInt]
    situations: tuple[str, ...] = ()
    """Features of the group that a client could see, see ``mathematics.suspicion``."""
    suspects: tuple[str, ...] = ()
    """Clients that were suspected in such groups when it was chosen."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        responses = len(self.rewards)
        raw = {len(scores) for line in self.clients for scores in (line.raw, line.standardised) if scores is not None}
        if raw - {responses} or max(self.pair) >= responses:
            raise ValueError(f"scores of {sorted(raw)} and pair {self.pair} do not fit {responses} rewards")
        if not np.isfinite(np.frombuffer(self.embedding, np.float32)).all():
            raise ValueError("the embedding has a number that is not finite")
        return self


class LiveAudit(_Audit):
    """An audited group that waits for a label."""

    messages: Messages
    responses: tuple[str, ...]
    images: dict[Sha256, bytes] = Field(repr=False)
    pair: tuple[NonNegativeInt, NonNegativeInt]
    """Two different responses drawn at random, in random order: what a person compares."""
    domain: str | None = None
    """Domain label of the prompt."""
    public: bool = False
    """The prompt's source is marked as public."""

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
    labelled_at: Finite
    by: str
    """``labeller``, or name of the person's token."""
    by_person: bool | None = None
    """True if a person gave it; ``None`` in audits of earlier versions, where ``by`` alone tells."""

    @property
    def person(self) -> str | None:
        """Name of the token of the person who labelled it; ``None``: the objective's labeller did."""
        by_person = self.by != _LABELLER if self.by_person is None else self.by_person
        return self.by if by_person else None

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
        name = audit_name(audit, audit.at)
        if _size(name) > _MOST_WAITING_BYTES:
            await self._count(objective, "dropped")
            return
        value = await asyncio.to_thread(audit.model_dump_json)
        place = key("audits", objective)
        await _WAITING.write(self._redis, [place], lambda: self._redis.hset(place, name, value))
        names = await self.waiting(objective)
        total = sum(map(_size, names))
        for gone, oldest in enumerate(names):
            if len(names) - gone <= _MOST_WAITING and total <= _MOST_WAITING_BYTES:
                break
            await self.close(objective, oldest, "dropped")
            total -= _size(oldest)

    async def waiting(self, objective: str) -> list[str]:
        """Return the names of the waiting groups, oldest first."""
        place = key("audits", objective)
        names: list[bytes] = await _WAITING.read(place, _WAITING.fetch(self._redis, "HKEYS", place), [])
        return sorted(_WAITING.parse_list(names, parse_name))

    async def get(self, objective: str, name: str) -> LiveAudit | None:
        """Return a waiting group; ``None`` where it waits no longer."""
        place = key("audits", objective)
        value: Any = await _WAITING.read(place, _WAITING.fetch(self._redis, "HGET", place, name), None)
        audit = await asyncio.to_thread(_WAITING.parse, name, value, _live)
        if audit is None and value is not None:
            await self.close(objective, name, "dropped")  # nobody could label it
        return audit

    async def close(self, objective: str, name: str, outcome: Outcome) -> bool:
        """Remove a waiting group that gets no label; return whether it still waited."""
        place = key("audits", objective)
        removed = bool(await _WAITING.read(place, self._redis.hdel(place, name), 0))
        if removed:
            await self._count(objective, outcome)
        return removed

    async def settle(
        self, objective: str, name: str, audit: LiveAudit, pairs: Sequence[tuple[int, int]], person: str | None
    ) -> bool:
        """Replace a waiting group by the labelled audit, and add its first pair to the anchors; return whether it
        still waited. ``pairs``: indices of the better and of the worse response, the clearest pair first; ``person``:
        who labelled it, ``None`` for the objective's labeller.

        The same pair under the same question counts once. After a crash in between, the same label may be given again.
        """
        shared = {field: getattr(audit, field) for field in _Audit.model_fields if field != "pair"}
        kept = tuple(pairs[:_MOST_PAIRS])
        by = {"by": _LABELLER if person is None else person, "by_person": person is not None}
        labelled = LabelledAudit(**shared, pair=kept[0], pairs=kept, labelled_at=SERVER_CLOCK.now(), **by)
        anchor = _anchor(audit, kept[0])
        await self._objectives.add_sampled(objective, [anchor], audit.images)
        place, value = key("audited", objective), labelled.model_dump_json()
        await _LABELLED.write(self._redis, [place], lambda: self._redis.hsetnx(place, anchor.digest, value))
        return await self.close(objective, name, "labelled")

    async def claim(self, objective: str, name: str, label: str) -> bool:
        """Give a waiting group to one label, so that of several at a time one counts; return whether it is this one.

        The same label may be given again, after a crash in between.
        """
        place = key("given", objective, name)
        if await self._redis.set(place, label, nx=True, ex=_CLAIM_S):
            return True
        stored: Any = await _CLAIMS.write(self._redis, [place], lambda: _CLAIMS.fetch(self._redis, "GET", place))
        left_s = await self._redis.ttl(place)
        if left_s == ENDLESS or left_s > _CLAIM_S:
            _CLAIMS.refuse(place, "it is no claim that ends in time; it is deleted")
            await self._redis.delete(place)
        return bool(stored == label.encode())

    async def remove_labels(self, objective: str, digests: Sequence[str], outcome: Outcome) -> int:
        """Remove labelled audits and the anchors made of them; return how many labels there were."""
        place = key("audited", objective)
        await self._objectives.remove_sampled(objective, digests)
        removed = int(await _LABELLED.read(place, self._redis.hdel(place, *digests), 0))
        await self._count(objective, outcome, removed)
        return removed

    async def labelled(self, objective: str) -> dict[str, LabelledAudit]:
        """Return the labelled audits by the digest of their pair, in the order of their calls."""
        place = key("audited", objective)
        stored: dict[bytes, bytes] = await _LABELLED.read(place, _LABELLED.fetch_hash(self._redis, place), {})
        return await asyncio.to_thread(_parsed, stored)

    async def prune(self, objective: str) -> None:
        """Delete the older half of the labelled audits, where there are too many."""
        found = list(await self.labelled(objective))
        if len(found) > _MOST_LABELLED:
            await self._redis.hdel(key("audited", objective), *found[: len(found) // 2])

    async def count_labelled(self, objective: str) -> int:
        place = key("audited", objective)
        return int(await _LABELLED.read(place, self._redis.hlen(place), 0))

    async def closed(self, objective: str) -> dict[str, int]:
        """Return the number of all groups that are no longer waiting, by outcome."""
        place, outcomes = key("tally", objective), sorted(get_args(Outcome))
        stored: list[Any] = await _TALLY.read(
            place, _TALLY.fetch(self._redis, "HMGET", place, *outcomes), [None] * len(outcomes)
        )
        return _TALLY.parse_all(dict(zip(outcomes, stored, strict=True)), lambda _, count: _number(count))

    async def _count(self, objective: str, outcome: Outcome, by: int = 1) -> None:
        metrics.AUDITS.labels(objective, outcome).inc(by)
        place = key("tally", objective)
        try:
            await _TALLY.write(self._redis, [place], lambda: self._redis.hincrby(place, outcome, by))
        except ResponseError:  # "not an integer", or one that would overflow
            _TALLY.refuse(outcome, "the count is no number, or the largest one; it begins anew")
            await self._redis.hset(place, outcome, by)


def _kibibytes(audit: LiveAudit) -> int:
    """Return the size of what clients saw of a group, which tells a person nothing about their scores."""
    texts = [message.text for message in audit.messages] + list(audit.responses)
    return 1 + (sum(map(len, audit.images.values())) + sum(len(text.encode()) for text in texts)) // 1024


def audit_name(audit: LiveAudit, at: float) -> str:
    """Make the name of a group that waits since the Unix time ``at``, in seconds."""
    return f"{round(1000 * at):0{_NAME_DIGITS}x}-{_kibibytes(audit):x}-{secrets.token_urlsafe(8)}"


def parse_name(content: bytes) -> str:
    """Parse the name of a waiting group.

    Raises:
        Invalid: it is none, or it states a size that no stored group has: others would have to go for it.
        ValueError: it is no text.
    """
    name = content.decode()
    if not _NAME.fullmatch(name) or _size(name) > _MOST_WAITING_BYTES:
        raise Invalid("this is not the name of a waiting audit")
    return name


def _live(content: bytes) -> LiveAudit:
    """Parse a waiting group. Its pictures become those of an anchor, so each must be the one that its hash names.

    Raises:
        ValueError: it does not fit.
        Invalid: a picture has another hash.
    """
    audit = LiveAudit.model_validate_json(content, extra="ignore")
    check_named(audit.images)
    return audit


def _number(content: bytes) -> int:
    return _COUNT.validate_python(int(content))


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


def pair_digest(audit: LiveAudit, pair: tuple[int, int]) -> str:
    """Return the digest under which a labelled pair (better, worse) of a group is stored."""
    return digest_of(audit.messages, *(audit.responses[place] for place in pair))


def _anchor(audit: LiveAudit, pair: tuple[int, int]) -> Anchor:
    chosen, rejected = (audit.responses[place] for place in pair)
    digest = pair_digest(audit, pair)
    return Anchor(
        id=f"audit-{digest[:16]}@{audit.policy}",
        digest=digest,
        messages=audit.messages,
        chosen=chosen,
        rejected=rejected,
        domain=audit.domain,
        public=audit.public,
        others=tuple(dict.fromkeys(text for text in audit.responses if text not in (chosen, rejected))),
        policy=audit.policy,
        audited=True,
    )


def _parsed(stored: Mapping[bytes, bytes]) -> dict[str, LabelledAudit]:
    pairs = _LABELLED.parse_all(
        stored,
        lambda digest, value: (
            _DIGEST.validate_python(digest.decode()),
            LabelledAudit.model_validate_json(value, extra="ignore"),
        ),
    )
    return dict(sorted(pairs.values(), key=lambda item: item[1].at))
