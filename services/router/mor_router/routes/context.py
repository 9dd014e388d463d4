"""What the routes share: the router at work, who is calling, and what each caller may see."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from mor_core.auth import Principal, Scope, require
from mor_core.errors import Forbidden

from mor_router.wiring import Router


async def _router(request: Request) -> Router:
    router: Router = request.app.state.router
    return router


Running = Annotated[Router, Depends(_router)]
Admin = Annotated[Principal, Depends(require())]
EnrolmentOrAdmin = Annotated[Principal, Depends(require(Scope.enrolment))]
ClientOrAdmin = Annotated[Principal, Depends(require(Scope.client))]
Reader = Annotated[Principal, Depends(require(Scope.viewer, Scope.service))]
ReaderOrClient = Annotated[Principal, Depends(require(Scope.viewer, Scope.service, Scope.client))]
ScorerOrClient = Annotated[Principal, Depends(require(Scope.service, Scope.client))]


def sees(caller: Principal, client: str) -> bool:
    """Whether ``caller`` may see figures of ``client``: a client sees its own only."""
    return caller.scope != Scope.client or caller.name == client


def check_sees(caller: Principal, client: str) -> None:
    """
    Raises:
        Forbidden: a client asks for another one.
    """
    if not sees(caller, client):
        raise Forbidden(f"token of client {caller.name!r} is good for its own page only, not for that of {client!r}")
