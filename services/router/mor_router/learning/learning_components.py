"""Components of the room ``learning``, with online refits and labels of audits in the background."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mor_core.background import in_background

from mor_router.clients.client_components import ClientComponents
from mor_router.learning.audit_labelling import AuditLabelling
from mor_router.learning.audit_people import AuditPeople
from mor_router.learning.audit_questions import AuditQuestions
from mor_router.learning.candidate_upload import CandidateUpload
from mor_router.learning.gate_fitter import GateFitter
from mor_router.learning.label_proposals import LabelProposals
from mor_router.learning.labels import LabellerStore
from mor_router.learning.online_refit import OnlineRefit
from mor_router.objectives.objective_components import ObjectiveComponents
from mor_router.resources import Resources
from mor_router.trust.trust_components import TrustComponents


@dataclass(frozen=True)
class LearningComponents:
    """Components that fit gate versions."""

    gate_fitter: GateFitter
    labellers: LabellerStore
    online_refit: OnlineRefit
    audit_labelling: AuditLabelling
    audit_questions: AuditQuestions
    audit_people: AuditPeople
    candidate_upload: CandidateUpload
    label_proposals: LabelProposals


@asynccontextmanager
async def open_learning(
    resources: Resources, clients: ClientComponents, objectives: ObjectiveComponents, trust: TrustComponents
) -> AsyncIterator[LearningComponents]:
    """Build the room, and refit fitted objectives at the interval of the settings."""
    settings = resources.settings
    gate_fitter = GateFitter(
        redis=resources.redis,
        settings=settings,
        registry=clients.registry,
        pool=clients.pool,
        objectives=objectives.store,
        gates=objectives.gates,
        embedder=resources.embedder,
        scorer=objectives.anchor_scorer,
        holdout=objectives.holdout,
        reconciliation=trust.reconciliation,
        quarantine=trust.quarantine,
        audit=resources.audit,
    )
    labellers = LabellerStore(resources.redis, clients.secret_store, settings, clients.egress, clients.pool)
    online_refit = OnlineRefit(
        redis=resources.redis,
        settings=settings,
        objectives=objectives.store,
        gates=objectives.gates,
        labellers=labellers,
        gate_fitter=gate_fitter,
        embedder=resources.embedder,
        audit=resources.audit,
    )
    audit_labelling = AuditLabelling(
        redis=resources.redis,
        objectives=objectives.store,
        labellers=labellers,
        audits=trust.audits,
        opinions=trust.second_opinions,
        auditor=trust.auditor,
        review=trust.audit_review,
        timeout_s=settings.deadline_s,
    )
    questions = AuditQuestions(
        redis=resources.redis,
        objectives=objectives.store,
        audits=trust.audits,
        opinions=trust.second_opinions,
        tallies=trust.person_tallies,
        labelling=audit_labelling,
        log=resources.audit,
        second_share=settings.audit_second_share,
    )
    people = AuditPeople(objectives.store, trust.audits, trust.second_opinions, trust.person_tallies, resources.audit)
    upload = CandidateUpload(
        objectives=objectives.store,
        embedder=resources.embedder,
        pool=clients.pool,
        scorer=objectives.anchor_scorer,
        holdout=objectives.holdout,
        audits=trust.audits,
        candidates=trust.candidate_pairs,
        log=resources.audit,
    )
    proposals = LabelProposals(
        objectives=objectives.store,
        gates=objectives.gate_resolver,
        embedder=resources.embedder,
        scorer=objectives.anchor_scorer,
        honeypot_scores=clients.honeypot_scores,
        audits=trust.audits,
        candidates=(trust.candidate_groups, trust.candidate_pairs),
        log=resources.audit,
    )
    work = [audit_labelling.follow]
    work += [online_refit.follow] if settings.refit_interval_s and settings.policy_url else []
    async with in_background(others=work):
        yield LearningComponents(
            gate_fitter, labellers, online_refit, audit_labelling, questions, people, upload, proposals
        )
