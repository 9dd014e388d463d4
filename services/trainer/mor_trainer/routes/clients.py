"""Route of the router's clients, for readers of runs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from mor_core.auth import Scope
from mor_core.clients import ClientStatus
from mor_core.errors import Forbidden, NotFound
from pydantic import TypeAdapter

from mor_trainer.routes.dependencies import ReaderOrClient, RouterClientDep

router = APIRouter(prefix="/v1", tags=["clients"])

_STATUS = TypeAdapter(ClientStatus)
_REFUSED = (401, 403)
"""Statuses by which the router refuses a token."""


@router.get(
    "/clients",
    summary="The router's clients: state, circuit, calibration",
    responses={404: {"description": "No router is set."}},
)
async def clients(request: Request, router_client: RouterClientDep, caller: ReaderOrClient) -> list[ClientStatus]:
    """List the router's clients by name, as the caller's token may see them; a client's token shows that client."""
    if router_client.url is None:
        raise NotFound("run control has no router's address; set MOR_ROUTER_URL to see the state of clients here")
    path = f"/v1/clients/{caller.name}" if caller.scope is Scope.client else "/v1/status"
    reply = await router_client.get(path, request.headers["Authorization"].partition(" ")[2])
    if reply.status_code in _REFUSED:
        raise Forbidden(f"the router refused the token of {caller.name!r}; give the router the same tokens file")
    if reply.status_code == 404:
        return []
    found = reply.json()
    lines = [found] if caller.scope is Scope.client else found["clients"]
    return [_STATUS.validate_python(line, extra="ignore") for line in lines]
