"""People who label audits: what each of them answered, and the withdrawal of one person's labels."""

from __future__ import annotations

from collections import Counter

from mor_core.audits import PersonLabels, WithdrawnLabels
from mor_core.errors import NotFound
from mor_core.intervals import wilson

from mor_router.audit import AuditLog
from mor_router.objectives.objective_store import ObjectiveStore
from mor_router.trust.live_audits import AuditStore
from mor_router.trust.person_tallies import PersonTallies, Tally
from mor_router.trust.second_opinions import SecondOpinions


class AuditPeople:
    """Labels of all objectives, by the person who gave them."""

    def __init__(
        self,
        objectives: ObjectiveStore,
        audits: AuditStore,
        opinions: SecondOpinions,
        tallies: PersonTallies,
        log: AuditLog,
    ) -> None:
        self._objectives = objectives
        self._audits = audits
        self._opinions = opinions
        self._tallies = tallies
        self._log = log

    async def all(self) -> list[PersonLabels]:
        """Summarise each person's labels, by name."""
        labels: Counter[str] = Counter()
        tallies: dict[str, Counter[Tally]] = {}
        for objective in await self._objectives.all():
            for person, counts in (await self._tallies.of(objective.name)).items():
                tallies.setdefault(person, Counter()).update(counts)
            labels.update(
                audit.person
                for audit in (await self._audits.labelled(objective.name)).values()
                if audit.person is not None
            )
        return [
            _summary(person, labels[person], tallies.get(person, Counter())) for person in sorted({*labels, *tallies})
        ]

    async def withdraw(self, person: str, by: str) -> WithdrawnLabels:
        """Remove all labels of ``person``, the anchors made of them, and the groups that wait for a second opinion on
        them.

        Raises:
            NotFound: nobody of this name has labelled anything.
        """
        known = False
        found: dict[str, int] = {}
        for objective in await self._objectives.all():
            name = objective.name
            own = [d for d, audit in (await self._audits.labelled(name)).items() if audit.person == person]
            known = known or bool(own) or person in await self._tallies.of(name)
            await self._opinions.remove_of(name, person)
            await self._tallies.forget(name, person)
            if own:
                found[name] = await self._audits.remove_labels(name, own, "withdrawn")
        if not known:
            raise NotFound(
                f"{person[:60]!r} has labelled no audits; list the people who have: mor label people, or "
                "GET /v1/audits/people"
            )
        self._log.record("withdraw", person, by, labels=sum(found.values()))
        return WithdrawnLabels(person=person, withdrawn=found)


def _summary(person: str, labels: int, tallies: Counter[Tally]) -> PersonLabels:
    compared = tallies["compared"]
    disagreed = min(tallies["disagreed"], compared)
    return PersonLabels(
        person=person,
        labels=labels,
        undecided=tallies["undecided"],
        skipped=tallies["skipped"],
        compared=compared,
        disagreed=disagreed,
        disagreement_interval=wilson(disagreed, compared) if compared else None,
    )
