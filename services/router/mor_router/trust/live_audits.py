"""Store of audits: live groups that were chosen after the clients had answered, without a label and with one.

A group waits with its question, pictures and responses until it has a label. The labelled audit keeps what the tests of
the clients need: raw scores, weights and slopes, and the labelled pair. Proposed pairs wait beside them for the same
labels, and count in fits only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from mor_core.endless_keys import delete_endless
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stored import StoredEntries
from mor_core.stored_counters import count_field
from mor_core.wire import Count, Sha256
from pydantic import TypeAdapter
from redis.asyncio import Redis

from mor_router import metrics
from mor_router.objectives.objective_store import Anchor, ObjectiveStore
from mor_router.store import key
from mor_router.trust.audit_types import LABELLER, ChosenGroup, LabelledAudit, LiveAudit, pair_digest
from mor_router.trust.waiting_groups import WaitingGroups

_MOST_WAITING = 256
"""Groups of one objective that wait for a label; the oldest ones are dropped."""
MOST_PROPOSED = 128
"""Proposed pairs of one objective that wait for a label: more than people label before a fit makes better proposals."""
_MOST_LABELLED = 2000
"""Labelled audits of one objective. When there are more, the older half goes: the tests then begin anew with the other
half, which costs one further chance of a false alarm, where dropping one at a time would cost one each."""
_MOST_PAIRS = 256
"""Labelled pairs kept of one group, the clearest ones: all pairs of 23 responses."""

_CLAIM_S = 900
"""Seconds for which a group is one label's: long enough for all that it may run into to end."""

Outcome = Literal["labelled", "undecided", "skipped", "dropped", "given_up", "disputed", "withdrawn"]

_DIGEST: TypeAdapter[str] = TypeAdapter(Sha256)
_COUNT: TypeAdapter[int] = TypeAdapter(Count)
_LABELLED = StoredEntries("labelled_audits", largest=16 << 20)
_TALLY = StoredEntries("audit_tally")
_CLAIMS = StoredEntries("audit_claims", largest=1 << 10)


class AuditStore:
    """Audits by objective, in Redis."""

    def __init__(self, redis: Redis, objectives: ObjectiveStore) -> None:
        self._redis = redis
        self._objectives = objectives
        self.drawn = WaitingGroups(redis, "audits", _MOST_WAITING)
        """Groups that were drawn."""
        self.proposed = WaitingGroups(redis, "proposed", MOST_PROPOSED)
        """Pairs that were proposed."""

    async def add(self, objective: str, audit: LiveAudit) -> None:
        """Store a drawn group that waits for a label, and drop the oldest ones over the bounds."""
        if dropped := await self.drawn.add(objective, audit, audit.at):
            await self._count(objective, "dropped", dropped)

    async def waiting(self, objective: str) -> list[str]:
        """Return the names of the waiting groups, oldest first."""
        return sorted([*await self.drawn.names(objective), *await self.proposed.names(objective)])

    async def get(self, objective: str, name: str) -> LiveAudit | None:
        """Return a waiting group; ``None`` where it waits no longer."""
        for groups in (self.drawn, self.proposed):
            audit, removed = await groups.get(objective, name)
            if audit is not None:
                return audit
            if removed:  # nobody could label it
                await self._count(objective, "dropped")
        return None

    async def close(self, objective: str, name: str, outcome: Outcome) -> bool:
        """Remove a waiting group that gets no label; return whether it still waited."""
        removed = await self.drawn.remove(objective, name) or await self.proposed.remove(objective, name)
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
        shared = {field: getattr(audit, field) for field in ChosenGroup.model_fields if field != "pair"}
        kept = tuple(pairs[:_MOST_PAIRS])
        by = {"by": LABELLER if person is None else person, "by_person": person is not None}
        labelled = LabelledAudit(**shared, pair=kept[0], pairs=kept, labelled_at=SERVER_CLOCK.now(), **by)
        anchor = _anchor(audit, kept[0])
        await self._objectives.add_sampled(objective, [anchor], audit.images)
        place, value = key("audited", objective), labelled.model_dump_json()
        await _LABELLED.write(self._redis, {place: "hash"}, lambda: self._redis.hsetnx(place, anchor.digest, value))
        return await self.close(objective, name, "labelled")

    async def claim(self, objective: str, name: str, label: str) -> bool:
        """Give a waiting group to one label, so that of several at a time one counts; return whether it is this one.

        The same label may be given again, after a crash in between.
        """
        place = key("given", objective, name)
        for _ in range(2):  # the second time where the claim has just ended, or was none
            if await self._redis.set(place, label, nx=True, ex=_CLAIM_S):
                return True
            stored: Any = await _CLAIMS.write(
                self._redis, {place: "string"}, lambda: _CLAIMS.fetch(self._redis, "GET", place)
            )
            if await delete_endless(self._redis, place, _CLAIM_S):
                _CLAIMS.refuse(place, "it is no claim that ends in time; it is deleted")
            elif stored is not None:
                return bool(stored == label.encode())
        return False

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
        """Delete the older half of the labelled audits where there are too many, and of the labelled proposed pairs."""
        found = await self.labelled(objective)
        for proposed in (False, True):
            digests = [digest for digest, audit in found.items() if audit.proposed is proposed]
            if len(digests) > _MOST_LABELLED:
                await self._redis.hdel(key("audited", objective), *digests[: len(digests) // 2])

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
        if await count_field(self._redis, place, outcome, by):
            _TALLY.refuse(outcome, "the count is none; it begins anew")


def _number(content: bytes) -> int:
    return _COUNT.validate_python(int(content))


def _anchor(audit: LiveAudit, pair: tuple[int, int]) -> Anchor:
    chosen, rejected = (audit.responses[place] for place in pair)
    digest = pair_digest(audit, pair)
    live = audit.policy is not None
    return Anchor(
        id=f"audit-{digest[:16]}@{audit.policy}" if live else f"proposed-{digest[:16]}",
        digest=digest,
        messages=audit.messages,
        chosen=chosen,
        rejected=rejected,
        domain=audit.domain,
        public=audit.public,
        others=tuple(dict.fromkeys(text for text in audit.responses if text not in (chosen, rejected))),
        policy=audit.policy,
        audited=live,
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
