"""Labels of audited groups by the objective's checker, function or judge, in the background of one replica.

The same replica reviews the clients once audits have new labels, whoever gave them.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import dataclass

import structlog
from mor_core.audits import AuditCounts
from mor_core.errors import MorError
from mor_core.failures import describe_failure
from mor_core.server_clock import SERVER_CLOCK
from mor_core.stored_objectives import AuditedBy
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_router import metrics
from mor_router.leadership import Leadership
from mor_router.learning.labels import Labeller, LabellerStore, SampledGroup
from mor_router.objectives.objective_store import Objective, ObjectiveStore
from mor_router.trust.audit_review import AuditReview
from mor_router.trust.audit_types import LiveAudit
from mor_router.trust.auditor import Auditor
from mor_router.trust.live_audits import AuditStore
from mor_router.trust.second_opinions import SecondOpinions
from mor_router.trust.waiting_groups import chosen_at

_PAUSE_S = 2.0
"""Mean seconds between looks for waiting groups: labels are not urgent, and a look costs one read per objective."""
_AT_ONCE = 4
"""Groups of one objective that are labelled at a time, to bound the load on a judge."""
_MOST_ATTEMPTS = 7
"""Attempts to label a group before it is given up: with the pauses below, after about half an hour."""
_RETRY_S = 5.0
"""Mean seconds before the second attempt, three times as many before each further one, jittered."""

log = structlog.get_logger(__name__)


@dataclass
class _Failures:
    count: int = 0
    due: float = 0.0
    """Time of the next attempt, on the event loop's clock."""


class AuditLabelling:
    """Background labelling of all objectives' audits, and reviews of the clients that they concern."""

    def __init__(
        self,
        *,
        redis: Redis,
        objectives: ObjectiveStore,
        labellers: LabellerStore,
        audits: AuditStore,
        opinions: SecondOpinions,
        auditor: Auditor,
        review: AuditReview,
        timeout_s: float,
    ) -> None:
        self._leadership = Leadership(redis, "audits")
        self._objectives = objectives
        self._labellers = labellers
        self._audits = audits
        self._opinions = opinions
        self._auditor = auditor
        self._review = review
        self._timeout_s = timeout_s
        self._failures: dict[tuple[str, str], _Failures] = {}
        self._reviewed: dict[str, int] = {}

    async def follow(self) -> None:
        """Label and review whenever this replica leads, until cancelled."""
        await self._leadership.while_leading(self._work)

    async def _work(self) -> None:
        try:
            while True:
                try:
                    await self.turn()
                except RedisError as error:
                    log.warning("audits wait", reason=describe_failure(error))
                await asyncio.sleep(random.uniform(0.5, 1.5) * _PAUSE_S)
        finally:  # another replica leads from now on, and reports
            metrics.forget_waiting_audits()

    async def turn(self) -> None:
        """Label every group that waits and is due, and review the clients of objectives with new labels."""
        await asyncio.gather(*(self._serve(objective) for objective in await self._objectives.all()))

    async def counts(self, objective: Objective) -> AuditCounts:
        """Count an objective's audits."""
        by = await self.labelled_by(objective)
        names = await self._audits.waiting(objective.name)
        if by == "people":  # those that wait for a second opinion are counted with the others, so that none stands out
            names = sorted([*names, *await self._opinions.waiting(objective.name)])
        return AuditCounts(
            objective=objective.name,
            share=self._auditor.share_of(objective),
            labelled_by=by,
            waiting=len(names),
            oldest=chosen_at(names[0]) if names else None,
            labelled=await self._audits.count_labelled(objective.name),
            closed=await self._audits.closed(objective.name),
        )

    async def labelled_by(self, objective: Objective) -> AuditedBy:
        """Return who labels the objective's audits now."""
        if objective.audited_by == "labeller" and await self._labellers.get(objective.name) is not None:
            return "labeller"
        return "people"

    async def _serve(self, objective: Objective) -> None:
        """Do one objective's work; its failure stops no other objective's."""
        name = objective.name
        try:
            await self._label_waiting(objective)
            count = await self._audits.count_labelled(name)
            if count != self._reviewed.get(name, 0):
                await self._review.review(name)
                self._reviewed[name] = await self._audits.count_labelled(name)
        except (MorError, RedisError) as error:
            log.warning("audits wait", objective=name, reason=describe_failure(error))
        except Exception as error:  # the loop outlives one objective's failure; the next turn tries again
            log.error("audits wait", objective=name, exc_info=error)

    async def _label_waiting(self, objective: Objective) -> None:
        names = await self._audits.waiting(objective.name)
        by = await self.labelled_by(objective)
        self._report(objective.name, names, by)
        if by != "labeller":
            return
        now = asyncio.get_running_loop().time()
        due = [name for name in names if now >= self._failures.get((objective.name, name), _Failures()).due]
        labeller = await self._labellers.open(objective.name) if due else None
        if labeller is None:
            return
        slots = asyncio.Semaphore(_AT_ONCE)
        try:
            labels = (self._label(objective, name, labeller, slots) for name in due)
            ended = await asyncio.gather(*labels, return_exceptions=True)  # none loses its labeller before its end
            for error in filter(None, ended):
                raise error
        finally:
            await labeller.close()

    def _report(self, objective: str, names: list[str], by: AuditedBy) -> None:
        for kind in ("labeller", "people"):
            metrics.AUDITS_WAITING.labels(objective, kind).set(len(names) if kind == by else 0)
        metrics.AUDIT_OLDEST.labels(objective).set(SERVER_CLOCK.now() - chosen_at(names[0]) if names else 0)
        gone = [known for known in self._failures if known[0] == objective and known[1] not in names]
        for known in gone:
            del self._failures[known]

    async def _label(self, objective: Objective, name: str, labeller: Labeller, slots: asyncio.Semaphore) -> None:
        """Label a group. Whatever fails but Redis is its own failure: a labeller is code of others."""
        async with slots:
            try:
                audit = await self._audits.get(objective.name, name)
                if audit is not None:
                    await self._label_audit(objective, name, audit, labeller)
            except RedisError:
                raise
            except Exception as error:
                await self._fail(objective.name, name, describe_failure(error))

    async def _label_audit(self, objective: Objective, name: str, audit: LiveAudit, labeller: Labeller) -> None:
        shown = [audit.responses[place] for place in audit.pair] if audit.proposed else audit.responses
        texts = tuple(dict.fromkeys(shown))
        sampled = SampledGroup(audit.messages, texts, audit.images)
        pairs = await labeller.label(sampled, objective.text, self._timeout_s)
        if not await self._audits.claim(objective.name, name, "labeller"):
            return  # a person has just labelled it
        if not pairs:
            await self._audits.close(objective.name, name, "undecided")
        else:
            place = audit.pair if audit.proposed else [_occurrence(audit, text) for text in texts]
            found = tuple((place[better], place[worse]) for better, worse in pairs)
            await self._audits.settle(objective.name, name, audit, found, None)

    async def _fail(self, objective: str, name: str, reason: str) -> None:
        metrics.AUDIT_FAILURES.labels(objective).inc()
        failures = self._failures.setdefault((objective, name), _Failures())
        failures.count += 1
        if failures.count >= _MOST_ATTEMPTS:
            log.error("an audited group is given up", objective=objective, attempts=failures.count, reason=reason)
            await self._audits.close(objective, name, "given_up")
            return
        pause = random.uniform(0.5, 1.5) * _RETRY_S * 3 ** (failures.count - 1)
        failures.due = asyncio.get_running_loop().time() + pause


def _occurrence(audit: LiveAudit, text: str) -> int:
    """Draw one of the places of a response that the group may hold several times: a client may have scored them
    differently."""
    return secrets.choice([place for place, response in enumerate(audit.responses) if response == text])
