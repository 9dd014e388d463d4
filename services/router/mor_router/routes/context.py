"""Dependencies of the routes: the running router, the caller, and the caller's rights."""

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

LabellerOrAdmin = Annotated[Principal, Depends(require(Scope.labeller))]
ReaderOrLabeller = Annotated[Principal, Depends(require(Scope.viewer, Scope.service, Scope.labeller))]


def may_see(caller: Principal, client: str) -> bool:
    """Return whether ``caller`` may see figures of ``client``: a client sees its own only."""
    return caller.scope != Scope.client or caller.name == client


def check_may_see(caller: Principal, client: str) -> None:
    """Check that ``caller`` may see figures of ``client``.

    Raises:
        Forbidden: the caller is another client.
    """
    if not may_see(caller, client):
        raise Forbidden(f"the token of client {caller.name!r} opens its own page only, not that of {client!r}")
