"""Components of the room ``trust``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mor_core.proposals import MOST_CANDIDATES

from mor_router.clients.client_components import ClientComponents
from mor_router.objectives.objective_components import ObjectiveComponents
from mor_router.resources import Resources
from mor_router.trust.answer_reconciliation import AnswerReconciliation
from mor_router.trust.audit_review import AuditReview
from mor_router.trust.auditor import Auditor
from mor_router.trust.disagreement_monitor import DisagreementMonitor
from mor_router.trust.drift import Drift
from mor_router.trust.honeypots import Honeypots
from mor_router.trust.live_audits import AuditStore
from mor_router.trust.person_tallies import PersonTallies
from mor_router.trust.quarantine import Quarantine
from mor_router.trust.second_opinions import SecondOpinions
from mor_router.trust.waiting_groups import WaitingGroups

_MOST_GROUPS = 256
"""Live groups of one objective that are kept as candidates; the oldest ones are dropped."""
_MOST_GROUP_BYTES = 32 << 20
"""Bytes of these groups' pictures, questions and responses."""


@dataclass(frozen=True)
class TrustComponents:
    """Components that check whether clients score live groups as they score anchors."""

    drift: Drift
    honeypots: Honeypots
    disagreement: DisagreementMonitor
    audits: AuditStore
    second_opinions: SecondOpinions
    person_tallies: PersonTallies
    auditor: Auditor
    candidate_groups: WaitingGroups
    """Live groups from which pairs are proposed."""
    candidate_pairs: WaitingGroups
    """Uploaded pairs from which some are proposed."""
    audit_review: AuditReview
    reconciliation: AnswerReconciliation
    quarantine: Quarantine


@asynccontextmanager
async def open_trust(
    resources: Resources, clients: ClientComponents, objectives: ObjectiveComponents
) -> AsyncIterator[TrustComponents]:
    """Build the room; honeypot calls in flight end with the body, and chosen groups are stored."""
    settings = resources.settings
    drift = Drift(
        registry=clients.registry,
        objectives=objectives.store,
        gate_resolver=objectives.gate_resolver,
        honeypot_scores=clients.honeypot_scores,
        audit=resources.audit,
        false_alarm=settings.drift_false_alarm,
    )
    audits = AuditStore(resources.redis, objectives.store)
    honeypots = Honeypots(
        redis=resources.redis,
        objectives=objectives.store,
        holdout=objectives.holdout,
        requester=clients.requester,
        honeypot_scores=clients.honeypot_scores,
        drift=drift,
        embedder=resources.embedder,
        share=settings.anchor_share,
    )
    candidate_groups = WaitingGroups(resources.redis, "groups", _MOST_GROUPS, _MOST_GROUP_BYTES)
    auditor = Auditor(audits, candidate_groups, resources.embedder, settings.audit_share, settings.candidate_share)
    try:
        yield TrustComponents(
            drift=drift,
            honeypots=honeypots,
            disagreement=DisagreementMonitor(resources.audit, settings.drift_false_alarm),
            audits=audits,
            second_opinions=SecondOpinions(resources.redis),
            person_tallies=PersonTallies(resources.redis),
            auditor=auditor,
            candidate_groups=candidate_groups,
            candidate_pairs=WaitingGroups(resources.redis, "pairs", MOST_CANDIDATES),
            audit_review=AuditReview(audits, objectives.store, clients.registry, drift, settings.drift_false_alarm),
            reconciliation=AnswerReconciliation(clients.honeypot_scores, audits, drift),
            quarantine=Quarantine(resources.redis, clients.registry, resources.audit),
        )
    finally:
        await honeypots.close()
        await auditor.settled()
