"""Dependencies of the routes: the running router, the caller, and the caller's rights."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from mor_core.auth import Principal, Scope, require

from mor_router.wiring import Router


async def _router(request: Request) -> Router:
    router: Router = request.app.state.router
    return router


Running = Annotated[Router, Depends(_router)]
Admin = Annotated[Principal, Depends(require())]
Service = Annotated[Principal, Depends(require(Scope.service))]
Scorer = Annotated[Principal, Depends(require(Scope.service, Scope.scorer))]
EnrolmentOrAdmin = Annotated[Principal, Depends(require(Scope.enrolment))]
Reader = Annotated[Principal, Depends(require(Scope.viewer, Scope.service))]
ReaderOrOwner = Annotated[Principal, Depends(require(Scope.viewer, Scope.service, Scope.client, own="name"))]
OwnerOrAdmin = Annotated[Principal, Depends(require(Scope.client, own="name"))]
LabellerOrAdmin = Annotated[Principal, Depends(require(Scope.labeller))]
ReaderOrLabeller = Annotated[Principal, Depends(require(Scope.viewer, Scope.service, Scope.labeller))]
