"""Route of the router's clients, for readers of runs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from mor_core.auth import Scope
from mor_core.clients import ClientStatus
from mor_core.errors import NotFound
from mor_core.visibility import visible
from pydantic import TypeAdapter

from mor_trainer.routes.dependencies import ReaderOrClient, RouterClientDep, bearer_token

router = APIRouter(prefix="/v1", tags=["clients"])

_STATUS = TypeAdapter(ClientStatus)


@router.get(
    "/clients",
    summary="The router's clients: state, circuit, calibration",
    responses={404: {"description": "No router is set."}},
)
async def clients(request: Request, router_client: RouterClientDep, caller: ReaderOrClient) -> list[ClientStatus]:
    """List the router's clients by name, as the caller's token may see them; a client's token shows that client."""
    path = f"/v1/clients/{caller.name}" if caller.scope is Scope.client else "/v1/status"
    try:
        reply = await router_client.forward("GET", path, bearer_token(request))
    except NotFound:
        if router_client.url is None:
            raise
        return []  # the client was revoked, and its token is still cached here
    content = reply.json()
    lines = [content] if caller.scope is Scope.client else content["clients"]
    found = [_STATUS.validate_python(line, extra="ignore") for line in lines]
    return [visible(status, caller.scope, caller.name) for status in found]
