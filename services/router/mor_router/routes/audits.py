"""``/v1/objectives/{name}/audits`` and ``/v1/audits``: state of audits, and labels by people."""

from __future__ import annotations

from fastapi import APIRouter
from mor_core.audits import AuditCounts, AuditLabel, AuditQuestion, ClientAudits
from mor_core.json_route import JsonRoute
from mor_core.openapi import problems

from mor_router.routes.context import LabellerOrAdmin, Reader, ReaderOrLabeller, Running

routes = APIRouter(prefix="/v1", tags=["audits"], route_class=JsonRoute)


@routes.get("/audits", summary="Audits of all objectives")
async def listing(router: Running, _: ReaderOrLabeller) -> list[AuditCounts]:
    return [
        await router.learning.audit_labelling.counts(objective) for objective in await router.objectives.store.all()
    ]


@routes.get("/audits/clients", summary="Agreement of each client with labelled audits")
async def clients(router: Running, _: Reader) -> list[ClientAudits]:
    return await router.trust.audit_review.of_all()


@routes.get("/objectives/{name}/audits", summary="Audits of an objective")
async def counts(name: str, router: Running, _: ReaderOrLabeller) -> AuditCounts:
    return await router.learning.audit_labelling.counts(await router.objectives.store.get(name))


@routes.get("/objectives/{name}/audits/next", summary="Next audited group to label", responses=problems(409))
async def next_question(name: str, router: Running, caller: LabellerOrAdmin) -> AuditQuestion | None:
    """Offer the oldest audited group that no other person is labelling, for 15 minutes; null where none waits. It is
    blind: two responses in random order, nothing about clients, scores or rewards."""
    return await router.learning.audit_questions.next(name, caller.name)


@routes.post(
    "/objectives/{name}/audits/{audit}", status_code=204, summary="Label an audited group", responses=problems(409)
)
async def label(name: str, audit: str, request: AuditLabel, router: Running, caller: LabellerOrAdmin) -> None:
    await router.learning.audit_questions.label(name, audit, request, caller.name)
