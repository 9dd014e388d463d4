"""``/v1/clients``: enrol, list, change, rotate, revoke."""

from __future__ import annotations

from fastapi import APIRouter
from mor_core.audits import ClientAudits
from mor_core.auth import Scope
from mor_core.clients import Change, Client, ClientStatus, Enrolled, Enrolment, Influence, PageToken, Rotated, Rotation
from mor_core.errors import Forbidden
from mor_core.json_route import JsonRoute
from mor_core.openapi import problems
from mor_core.paging import MOST_ENTRIES, After, PageLimit, page
from mor_core.visibility import visible

from mor_router.routes.context import (
    Admin,
    EnrolmentOrAdmin,
    OwnerOrAdmin,
    Reader,
    ReaderOrOwner,
    Running,
    Service,
)

routes = APIRouter(prefix="/v1/clients", tags=["clients"], route_class=JsonRoute)
page_tokens = APIRouter(prefix="/v1/page-tokens", tags=["clients"], route_class=JsonRoute)


@routes.post("", status_code=201, summary="Enrol a client", responses=problems(409, 429))
async def enrol(request: Enrolment, router: Running, caller: EnrolmentOrAdmin) -> Enrolled:
    """Check the address, read the card and have a probe item scored with the given token; store the client if all
    succeeds. The response contains the token of the client's own page, once. A token of scope ``enrolment`` cannot
    enrol a client as ``active``."""
    enrolled_by, egress = None, None
    if caller.scope is Scope.enrolment:
        if request.state != "probation":
            raise Forbidden(
                "a token of scope enrolment enrols on probation only; request activation from the platform team"
            )
        enrolled_by = caller.name
        egress = await router.clients.enrolment_quota.take(enrolled_by, request.url)
    return await router.clients.enroller.enrol(request, caller.name, enrolled_by=enrolled_by, egress=egress)


@page_tokens.get("", summary="Hashes of the clients' page tokens, for run control")
async def list_page_tokens(router: Running, _: Service) -> list[PageToken]:
    """Return the hash of each client's page token, by which run control recognises clients."""
    return [PageToken(client=name, sha256=digest) for digest, name in router.clients.pool.page_tokens.items()]


@routes.get("", summary="Clients by name")
async def listing(
    router: Running, caller: Reader, after: After = None, limit: PageLimit = MOST_ENTRIES
) -> list[Client]:
    found = page(await router.clients.registry.all(), lambda record: record.name, after, limit)
    return [visible(record.public(), caller.scope, caller.name) for record in found]


@routes.get("/{name}", summary="One client, with its health")
async def one(name: str, router: Running, caller: ReaderOrOwner) -> ClientStatus:
    await router.clients.registry.get(name)
    await router.clients.pool.refresh()
    found = ClientStatus(
        client=router.clients.pool.records[name].public(),
        circuit=router.clients.pool.circuit_state(name),
        last_error=router.clients.pool.last_error(name),
    )
    return visible(found, caller.scope, caller.name)


@routes.get("/{name}/influence", summary="Influence of a client's scores on recent rewards")
async def influence(name: str, router: Running, _: ReaderOrOwner) -> Influence:
    """Return, by objective and over the latest rewarded groups: mean weight, share of the within-group variance, and
    the number of groups in which the client's scores did not count, by reason. A client's own token shows its own
    influence only."""
    await router.clients.registry.get(name)
    return await router.rewarding.influences.of(name)


@routes.get("/{name}/audits", summary="Agreement of a client with labelled audits")
async def audits(name: str, router: Running, _: ReaderOrOwner) -> ClientAudits:
    """Return, by objective, the number of labelled audits of live groups that the client scored with its present model,
    and its agreement with their labels. Which groups they are is shown to nobody."""
    return await router.trust.audit_review.of_client(name)


@routes.patch("/{name}", summary="Pause, resume or move a client", responses=problems(409))
async def change(name: str, request: Change, router: Running, caller: Admin) -> Client:
    return (await router.clients.enroller.change(name, request, caller.name)).public()


@routes.post("/{name}/rotate", summary="Replace a client's credentials", responses=problems(409))
async def rotate(name: str, request: Rotation, router: Running, caller: Admin) -> Rotated:
    return await router.clients.enroller.rotate(name, request, caller.name)


@routes.delete("/{name}", status_code=204, summary="Revoke a client")
async def revoke(name: str, router: Running, caller: OwnerOrAdmin) -> None:
    """Delete the client and its secret, invalidate its own token, and stop calls to it. A client may revoke itself."""
    await router.clients.enroller.revoke(name, caller.name)
