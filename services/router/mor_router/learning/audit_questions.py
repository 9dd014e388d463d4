"""Labels of audited groups by people, who see a question and two responses, and nothing about clients or rewards."""

from __future__ import annotations

import base64

from mor_core.audits import AuditLabel, AuditQuestion
from mor_core.errors import Conflict, NotFound
from mor_core.stored import StoredEntries
from redis.asyncio import Redis

from mor_router.audit import AuditLog
from mor_router.learning.audit_labelling import AuditLabelling
from mor_router.objectives.objective_store import ObjectiveStore
from mor_router.store import key
from mor_router.trust.live_audits import AuditStore

_OFFER_S = 900
"""Seconds for which a group is one person's: long enough for a hard question and a coffee."""
_OFFERS = StoredEntries("audit_offers", largest=1 << 10)


class AuditQuestions:
    """Queue of audited groups for people; each group is offered to one person at a time."""

    def __init__(
        self, redis: Redis, objectives: ObjectiveStore, audits: AuditStore, labelling: AuditLabelling, log: AuditLog
    ) -> None:
        self._redis = redis
        self._objectives = objectives
        self._audits = audits
        self._labelling = labelling
        self._log = log

    async def next(self, objective: str, person: str) -> AuditQuestion | None:
        """Offer the oldest group that no other person has; ``None`` where none waits.

        Raises:
            NotFound: no such objective.
            Conflict: the objective's labeller labels its audits.
        """
        found = await self._objectives.get(objective)
        if await self._labelling.labelled_by(found) != "people":
            raise Conflict(
                f"the labeller of objective {objective!r} labels its audits; "
                "PATCH its audited_by to 'people' to label them here"
            )
        names = await self._audits.waiting(objective)
        for name in names:
            if not await self._offer(objective, name, person):
                continue
            if (audit := await self._audits.get(objective, name)) is None:
                continue
            first, second = audit.pair
            return AuditQuestion(
                audit=name,
                objective=objective,
                goal=found.text,
                messages=audit.messages,
                images={digest: base64.b64encode(content).decode() for digest, content in audit.images.items()},
                first=audit.responses[first],
                second=audit.responses[second],
                waiting=len(names),
                labelled=(await self._audits.closed(objective)).get("labelled", 0),
            )
        return None

    async def label(self, objective: str, name: str, label: AuditLabel, person: str) -> None:
        """Take a person's label.

        Raises:
            NotFound: no such objective, or no such group waits.
            Conflict: the group is offered to another person.
        """
        await self._objectives.get(objective)
        audit = await self._audits.get(objective, name)
        if audit is None:
            raise NotFound(
                f"no audit {name[:60]!r} of {objective!r} waits for a label; GET .../audits/next offers another"
            )
        if not await self._offer(objective, name, person):
            raise Conflict("another person is labelling this group; GET .../audits/next offers another")
        first, second = audit.pair
        if label.preferred in ("first", "second"):
            better, worse = (first, second) if label.preferred == "first" else (second, first)
            await self._audits.settle(objective, name, audit, [(better, worse)], person)
        else:
            await self._audits.close(objective, name, "undecided" if label.preferred == "tie" else "skipped")
        await self._redis.delete(_offer_key(objective, name))
        self._log.record("label", objective, person, audit=name, preferred=label.preferred)

    async def _offer(self, objective: str, name: str, person: str) -> bool:
        """Give a group to ``person`` for a while; return whether it is theirs now."""
        taken = _offer_key(objective, name)
        if await self._redis.set(taken, person, nx=True, ex=_OFFER_S):
            return True
        stored = await _OFFERS.write(self._redis, [taken], lambda: _OFFERS.fetch(self._redis, "GET", taken))
        holder = _OFFERS.parse(taken, stored, bytes.decode)
        if holder is not None:
            return holder == person
        await self._redis.set(taken, person, ex=_OFFER_S)  # the offer has just ended, or was nobody's
        return True


def _offer_key(objective: str, name: str) -> str:
    return key("auditor", objective, name)
