"""Routes of the router's audits, for the dashboard: the caller's token decides what the router shows and takes."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query, Request
from mor_core.audits import AuditCounts, AuditLabel, AuditQuestion, ClientAudits, PersonLabels, WithdrawnLabels
from mor_core.auth import Scope
from mor_core.json_route import JsonRoute
from mor_core.objectives import ObjectiveName
from mor_core.openapi import problems
from mor_core.proposals import MOST_COUNT, LabelProposal, ProposalRequest
from pydantic import TypeAdapter

from mor_trainer.routes.dependencies import (
    Admin,
    LabellerOrAdmin,
    ReaderOrClient,
    ReaderOrLabeller,
    RouterClientDep,
    bearer_token,
)

router = APIRouter(prefix="/v1/audits", tags=["audits"], route_class=JsonRoute)

_COUNTS = TypeAdapter(list[AuditCounts])
_CLIENTS = TypeAdapter(list[ClientAudits])
_CLIENT = TypeAdapter(ClientAudits)
_PEOPLE = TypeAdapter(list[PersonLabels])
_QUESTION = TypeAdapter(AuditQuestion | None)

AuditName = Annotated[str, Path(pattern=r"^[0-9a-f]{12}-[A-Za-z0-9_-]{1,40}$")]
"""A name goes into the path of a request to the router, so it has no other characters."""
_RANKING_S = 15.0
"""Seconds for a ranking: the first one after the router's start embeds all anchors. The dashboard waits for 20 s."""
_NO_ROUTER = {"description": "No router is set, or it has no such objective or audit."}


@router.get("", summary="Audits of all objectives", responses={404: _NO_ROUTER})
async def listing(request: Request, router_client: RouterClientDep, _: ReaderOrLabeller) -> list[AuditCounts]:
    reply = await router_client.forward("GET", "/v1/audits", bearer_token(request))
    return _COUNTS.validate_json(reply.content, extra="ignore")


@router.get("/clients", summary="Agreement of each client with labelled audits", responses={404: _NO_ROUTER})
async def clients(request: Request, router_client: RouterClientDep, caller: ReaderOrClient) -> list[ClientAudits]:
    """List the clients by name; a client's token shows that client. Which groups were audited is shown to nobody."""
    token = bearer_token(request)
    if caller.scope is Scope.client:
        reply = await router_client.forward("GET", f"/v1/clients/{caller.name}/audits", token)
        return [_CLIENT.validate_json(reply.content, extra="ignore")]
    reply = await router_client.forward("GET", "/v1/audits/clients", token)
    return _CLIENTS.validate_json(reply.content, extra="ignore")


@router.get("/people", summary="Labels and disagreement of each person", responses={404: _NO_ROUTER})
async def people(request: Request, router_client: RouterClientDep, _: Admin) -> list[PersonLabels]:
    """List the people who have labelled audits, by the name of their token."""
    reply = await router_client.forward("GET", "/v1/audits/people", bearer_token(request))
    return _PEOPLE.validate_json(reply.content, extra="ignore")


@router.delete("/labels", summary="Withdraw all labels of a person", responses={404: _NO_ROUTER})
async def withdraw(
    by: Annotated[str, Query(description="Name of the person's token.", min_length=1)],
    request: Request,
    router_client: RouterClientDep,
    _: Admin,
) -> WithdrawnLabels:
    """Remove the person's labels of all objectives, and the anchors made of them."""
    reply = await router_client.forward("DELETE", f"/v1/audits/labels?{urlencode({'by': by})}", bearer_token(request))
    return WithdrawnLabels.model_validate_json(reply.content, extra="ignore")


@router.get(
    "/{objective}/proposals", summary="Pairs worth labelling next", responses={404: _NO_ROUTER, **problems(409)}
)
async def worth_labelling(
    *,
    objective: ObjectiveName,
    count: Annotated[int, Query(ge=1, le=MOST_COUNT, description="Largest number of pairs.")] = 16,
    request: Request,
    router_client: RouterClientDep,
    _: LabellerOrAdmin,
) -> LabelProposal:
    """Rank the unlabelled pairs by what their labels would tell a fit; nothing changes."""
    path = f"/v1/objectives/{objective}/proposals?{urlencode({'count': count})}"
    reply = await router_client.forward("GET", path, bearer_token(request), timeout_s=_RANKING_S)
    return LabelProposal.model_validate_json(reply.content, extra="ignore")


@router.post(
    "/{objective}/proposals",
    summary="Have the most valuable pairs labelled",
    responses={404: _NO_ROUTER, **problems(409)},
)
async def propose(
    objective: ObjectiveName, body: ProposalRequest, request: Request, router_client: RouterClientDep, _: Admin
) -> LabelProposal:
    """Move the pairs worth labelling next to the queue of audited groups."""
    path = f"/v1/objectives/{objective}/proposals"
    content = body.model_dump(mode="json")
    reply = await router_client.forward("POST", path, bearer_token(request), content, timeout_s=_RANKING_S)
    return LabelProposal.model_validate_json(reply.content, extra="ignore")


@router.get("/{objective}/next", summary="Next audited group to label", responses={404: _NO_ROUTER, **problems(409)})
async def next_question(
    objective: ObjectiveName, request: Request, router_client: RouterClientDep, _: LabellerOrAdmin
) -> AuditQuestion | None:
    """Offer the oldest audited group that no other person is labelling; null where none waits."""
    path = f"/v1/objectives/{objective}/audits/next"
    reply = await router_client.forward("GET", path, bearer_token(request))
    return _QUESTION.validate_json(reply.content, extra="ignore")


@router.post(
    "/{objective}/{audit}",
    status_code=204,
    summary="Label an audited group",
    responses={404: _NO_ROUTER, **problems(409)},
)
async def label(
    *,
    objective: ObjectiveName,
    audit: AuditName,
    body: AuditLabel,
    request: Request,
    router_client: RouterClientDep,
    _: LabellerOrAdmin,
) -> None:
    path = f"/v1/objectives/{objective}/audits/{audit}"
    await router_client.forward("POST", path, bearer_token(request), body.model_dump(mode="json"))
