"""``/v1/objectives/{name}/audits`` and ``/v1/audits``: state of audits, labels by people, and those people."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from mor_core.audits import AuditCounts, AuditLabel, AuditQuestion, ClientAudits, PersonLabels, WithdrawnLabels
from mor_core.json_route import JsonRoute
from mor_core.openapi import problems

from mor_router.routes.context import Admin, LabellerOrAdmin, Reader, ReaderOrLabeller, Running

routes = APIRouter(prefix="/v1", tags=["audits"], route_class=JsonRoute)

_BY = "Name of the person's token."


@routes.get("/audits", summary="Audits of all objectives")
async def listing(router: Running, _: ReaderOrLabeller) -> list[AuditCounts]:
    return [
        await router.learning.audit_labelling.counts(objective) for objective in await router.objectives.store.all()
    ]


@routes.get("/audits/clients", summary="Agreement of each client with labelled audits")
async def clients(router: Running, _: Reader) -> list[ClientAudits]:
    return await router.trust.audit_review.of_all()


@routes.get("/audits/people", summary="Labels and disagreement of each person")
async def people(router: Running, _: Admin) -> list[PersonLabels]:
    """List the people who have labelled audits, by the name of their token. A person who often disagrees with the
    others is careless, or lies."""
    return await router.learning.audit_people.all()


@routes.delete("/audits/labels", summary="Withdraw all labels of a person", responses=problems(404))
async def withdraw(
    by: Annotated[str, Query(description=_BY, min_length=1)], router: Running, caller: Admin
) -> WithdrawnLabels:
    """Remove the person's labels of all objectives, and the anchors made of them. Remove the person's token first.
    Clients that lost their weight because of the labels get it back by a fit, or by ``PATCH /v1/clients/{name}``."""
    return await router.learning.audit_people.withdraw(by, caller.name)


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
