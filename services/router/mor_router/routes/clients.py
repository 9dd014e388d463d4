"""``/v1/clients``: enrol, list, change, rotate, revoke."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from mor_core.auth import Scope
from mor_core.clients import Change, Client, ClientStatus, Enrolled, Enrolment, Influence, Rotated, Rotation
from mor_core.errors import Forbidden
from mor_core.openapi import problems

from mor_router.routes.context import (
    Admin,
    ClientOrAdmin,
    EnrolmentOrAdmin,
    Reader,
    ReaderOrClient,
    Running,
    check_may_see,
)

routes = APIRouter(prefix="/v1/clients", tags=["clients"])


@routes.post("", status_code=201, summary="Enrol a client", responses=problems(409))
async def enrol(request: Enrolment, router: Running, caller: EnrolmentOrAdmin) -> Enrolled:
    """Check the address, read the card and have a probe item scored with the given token; store the client if all
    succeeds. The response contains the token of the client's own page, once. A token of scope ``enrolment`` cannot
    enrol a client as ``active``."""
    if caller.scope == Scope.enrolment and request.state != "probation":
        raise Forbidden(
            "a token of scope enrolment enrols on probation only; request activation from the platform team"
        )
    return await router.clients.enroller.enrol(request, caller.name)


@routes.get("", summary="All clients")
async def listing(router: Running, _: Reader) -> list[Client]:
    return [record.public() for record in await router.clients.registry.all()]


@routes.get("/{name}", summary="One client, with its health")
async def one(name: str, router: Running, caller: ReaderOrClient) -> ClientStatus:
    check_may_see(caller, name)
    await router.clients.registry.get(name)
    await router.clients.pool.refresh()
    circuit: Any = await router.clients.pool.circuit(name)
    return ClientStatus(
        client=router.clients.pool.records[name].public(),
        circuit=circuit,
        last_error=router.clients.pool.last_error(name),
    )


@routes.get("/{name}/influence", summary="Influence of a client's scores on recent rewards")
async def influence(name: str, router: Running, caller: ReaderOrClient) -> Influence:
    """Return, by objective and over the latest rewarded groups: mean weight, share of the within-group variance, and
    the number of groups in which the client's scores did not count, by reason. A client's own token shows its own
    influence only."""
    check_may_see(caller, name)
    await router.clients.registry.get(name)
    return await router.rewarding.influences.of(name)


@routes.patch("/{name}", summary="Pause, resume or move a client", responses=problems(409))
async def change(name: str, request: Change, router: Running, caller: Admin) -> Client:
    return (await router.clients.enroller.change(name, request, caller.name)).public()


@routes.post("/{name}/rotate", summary="Replace a client's credentials", responses=problems(409))
async def rotate(name: str, request: Rotation, router: Running, caller: Admin) -> Rotated:
    return await router.clients.enroller.rotate(name, request, caller.name)


@routes.delete("/{name}", status_code=204, summary="Revoke a client")
async def revoke(name: str, router: Running, caller: ClientOrAdmin) -> None:
    """Delete the client and its secret, invalidate its own token, and stop calls to it. A client may revoke itself."""
    check_may_see(caller, name)
    await router.clients.enroller.revoke(name, caller.name)
