"""What routes are given: the parts of the service, and who may call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.dependencies.utils import get_flat_dependant
from mor_core.auth import Principal, Scope, require
from mor_core.errors import Invalid

from mor_trainer.config import ControlSettings
from mor_trainer.control.alerts import Alerts
from mor_trainer.control.dead_letter_store import Letters
from mor_trainer.control.history import History
from mor_trainer.control.ingest import Watchers
from mor_trainer.control.router import Router
from mor_trainer.control.store import RunStore
from mor_trainer.control.worker_registry import Workers


def _part(name: str) -> Callable[[Request], Any]:
    """A part that the application was made with."""

    async def given(request: Request) -> Any:  # what is no coroutine takes a thread
        return getattr(request.app.state, name)

    return given


async def known_query(request: Request) -> None:
    """
    Raises:
        Invalid: a query parameter that the route does not take; misspelt, it would filter nothing.
    """
    if not request.query_params:
        return
    taken = {field.alias for field in get_flat_dependant(request.scope["route"].dependant).query_params}
    unknown = sorted(set(request.query_params) - taken)
    if unknown:
        known = ", ".join(sorted(taken)) or "none"
        raise Invalid(f"unknown query parameter {unknown[0][:80]!r}; {request.url.path} takes {known}")


Runs = Annotated[RunStore, Depends(_part("runs"))]
Past = Annotated[History, Depends(_part("history"))]
Watching = Annotated[Watchers, Depends(_part("watchers"))]
Alarms = Annotated[Alerts, Depends(_part("alerts"))]
Dead = Annotated[Letters, Depends(_part("letters"))]
Crew = Annotated[Workers, Depends(_part("workers"))]
Registry = Annotated[Router, Depends(_part("registry"))]
Configured = Annotated[ControlSettings, Depends(_part("settings"))]

READERS_AND_CLIENTS = (Scope.viewer, Scope.service, Scope.client)

Admin = Annotated[Principal, Depends(require())]
Reader = Annotated[Principal, Depends(require(Scope.viewer, Scope.service))]
ReaderOrClient = Annotated[Principal, Depends(require(*READERS_AND_CLIENTS))]
Service = Annotated[Principal, Depends(require(Scope.service))]
