"""Labels of audited groups by people, who see a question and two responses, and nothing about clients or rewards.

A random share of the groups that a person labelled is offered to another person as well. Where the two answer
differently, the label no longer counts, and the disagreement counts for both (``audit_people``).
"""

from __future__ import annotations

import base64
import secrets

from mor_core.audits import AuditLabel, AuditQuestion
from mor_core.endless_keys import delete_endless
from mor_core.errors import Conflict, NotFound
from mor_core.stored import StoredEntries
from redis.asyncio import Redis

from mor_router.audit import AuditLog
from mor_router.learning.audit_labelling import AuditLabelling
from mor_router.objectives.objective_store import ObjectiveStore
from mor_router.store import key
from mor_router.trust.audit_types import LiveAudit, pair_digest
from mor_router.trust.live_audits import AuditStore, Outcome
from mor_router.trust.person_tallies import PersonTallies, Tally
from mor_router.trust.second_opinions import SecondOpinion, SecondOpinions

_OFFER_S = 900
"""Seconds for which a group is one person's: long enough for a hard question and a coffee."""
_OFFERS = StoredEntries("audit_offers", largest=1 << 10)
_TALLY: dict[Outcome, Tally] = {"labelled": "labelled", "undecided": "undecided", "skipped": "skipped"}


class AuditQuestions:
    """Queue of audited groups for people; each group is offered to one person at a time."""

    def __init__(
        self,
        *,
        redis: Redis,
        objectives: ObjectiveStore,
        audits: AuditStore,
        opinions: SecondOpinions,
        tallies: PersonTallies,
        labelling: AuditLabelling,
        log: AuditLog,
        second_share: float,
    ) -> None:
        self._redis = redis
        self._objectives = objectives
        self._audits = audits
        self._opinions = opinions
        self._tallies = tallies
        self._labelling = labelling
        self._log = log
        self._second_share = second_share

    async def next(self, objective: str, person: str) -> AuditQuestion | None:
        """Offer a group that no other person has; ``None`` where none waits.

        Proposed pairs come first, the most valuable ones before the others, then the oldest group.

        Raises:
            NotFound: no such objective.
            Conflict: the objective's labeller labels its audits.
        """
        found = await self._objectives.get(objective)
        if await self._labelling.labelled_by(found) != "people":
            raise Conflict(
                f"the labeller of objective {objective!r} labels its audits; to have people label them: "
                f"mor objective change {objective} --audited-by people"
            )
        proposed = await self._audits.proposed.names(objective)
        others = [*await self._audits.drawn.names(objective), *await self._opinions.waiting(objective)]
        names = [*proposed, *sorted(others)]
        for name in names:
            audit, opinion = await self._waiting(objective, name)
            if audit is None or (opinion is not None and opinion.person == person):
                continue
            if not await self._offer(objective, name, person):
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
            NotFound: no such objective, or no such group waits for this person.
            Conflict: the group is offered to another person, or has another label already.
        """
        await self._objectives.get(objective)
        audit, opinion = await self._waiting(objective, name)
        if audit is None or (opinion is not None and opinion.person == person):
            raise NotFound(f"no audit {name[:60]!r} of {objective!r} waits for your label; {_another(objective)}")
        if not await self._offer(objective, name, person):
            raise Conflict(f"another person is labelling this group; {_another(objective)}")
        if not await self._audits.claim(objective, name, f"{label.preferred} {person}"):
            raise Conflict(f"this group has another label already; {_another(objective)}")
        if opinion is not None:
            await self._compare(objective, name, opinion, label, person)
        else:
            await self._settle(objective, name, audit, label, person)
        await self._redis.delete(_offer_key(objective, name))
        self._log.record("label", objective, person, audit=name, preferred=label.preferred)

    async def _waiting(self, objective: str, name: str) -> tuple[LiveAudit | None, SecondOpinion | None]:
        """Return a waiting group, and the first person's label where it waits for a second opinion."""
        if (audit := await self._audits.get(objective, name)) is not None:
            return audit, None
        opinion = await self._opinions.get(objective, name)
        return (None if opinion is None else opinion.audit), opinion

    async def _settle(self, objective: str, name: str, audit: LiveAudit, label: AuditLabel, person: str) -> None:
        """Close a group by a person's label, and draw whether another person is asked as well."""
        pair = audit.pair if label.preferred == "first" else audit.pair[::-1]
        outcome: Outcome = "labelled"
        if label.preferred in ("first", "second"):
            closed = await self._audits.settle(objective, name, audit, [pair], person)
        else:
            outcome = "undecided" if label.preferred == "tie" else "skipped"
            closed = await self._audits.close(objective, name, outcome)
        if not closed:
            return
        await self._tallies.count(objective, person, _TALLY[outcome])
        if outcome == "skipped" or secrets.SystemRandom().random() >= self._second_share:
            return
        if {*await self._tallies.of(objective)} - {person}:  # somebody else is there to give it
            digest = pair_digest(audit, pair) if outcome == "labelled" else None
            await self._opinions.add(
                objective, SecondOpinion(audit=audit, person=person, preferred=label.preferred, label=digest)
            )

    async def _compare(self, objective: str, name: str, opinion: SecondOpinion, label: AuditLabel, person: str) -> None:
        """Compare a second person's label with the first one's."""
        if not await self._opinions.remove(objective, name):
            return
        if label.preferred == "skip":
            await self._tallies.count(objective, person, "skipped")
            return
        differ: tuple[Tally, ...] = () if label.preferred == opinion.preferred else ("disagreed",)
        for one in (person, opinion.person):
            await self._tallies.count(objective, one, "compared", *differ)
        if differ and opinion.label is not None:
            await self._audits.remove_labels(objective, [opinion.label], "disputed")

    async def _offer(self, objective: str, name: str, person: str) -> bool:
        """Give a group to ``person`` for a while; return whether it is theirs now."""
        taken = _offer_key(objective, name)
        for _ in range(2):  # the second time where the offer has just ended, or was nobody's
            if await self._redis.set(taken, person, nx=True, ex=_OFFER_S):
                return True
            stored = await _OFFERS.write(
                self._redis, {taken: "string"}, lambda: _OFFERS.fetch(self._redis, "GET", taken)
            )
            if await delete_endless(self._redis, taken, _OFFER_S):
                _OFFERS.refuse(taken, "it is no offer that ends in time; it is deleted")
            elif stored is not None:
                return _OFFERS.parse(taken, stored, bytes.decode) == person
        return False


def _offer_key(objective: str, name: str) -> str:
    return key("auditor", objective, name)


def _another(objective: str) -> str:
    """Return the cure for a group that this person cannot label."""
    return f"get another one: mor label next {objective}, or GET .../audits/next"
