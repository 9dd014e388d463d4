"""Dependencies of routes: the parts of the service, and the callers that a route admits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Path, Request
from fastapi.dependencies.utils import get_flat_dependant
from mor_core.auth import Principal, Scope, require
from mor_core.errors import Invalid

from mor_trainer.config import ControlSettings
from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.database import Database
from mor_trainer.control.dead_letter_store import DeadLetterStore
from mor_trainer.control.engine_registry import EngineRegistry
from mor_trainer.control.history import History
from mor_trainer.control.ingest import Watchers
from mor_trainer.control.model_exports import ModelExports
from mor_trainer.control.model_pushes import ModelPushes
from mor_trainer.control.retention import Retention
from mor_trainer.control.router_client import RouterClient
from mor_trainer.control.run_archive import RunArchive
from mor_trainer.control.run_changes import RunChanges
from mor_trainer.control.run_creator import RunCreator
from mor_trainer.control.run_deletion import RunDeletion
from mor_trainer.control.run_store import RunStore
from mor_trainer.control.storage_report import StorageReporter
from mor_trainer.control.worker_registry import WorkerRegistry


def _part(name: str) -> Callable[[Request], Any]:
    """Return a dependency on a part of the application."""

    async def given(request: Request) -> Any:  # a plain function would run on a thread of the pool
        return getattr(request.app.state, name)

    return given


async def known_query(request: Request) -> None:
    """Check that the route takes each query parameter; a misspelt one would filter nothing.

    Raises:
        Invalid: unknown query parameter.
    """
    if not request.query_params:
        return
    taken = {field.alias for field in get_flat_dependant(request.scope["route"].dependant).query_params}
    unknown = sorted(set(request.query_params) - taken)
    if unknown:
        known = ", ".join(sorted(taken)) or "none"
        raise Invalid(f"unknown query parameter {unknown[0][:80]!r}; {request.url.path} takes {known}")


async def owned_history(request: Request) -> None:
    """Check that this run control owns the history; what another one knows by now is not known here.

    Raises:
        NotOwner: another run control owns it, or none does yet.
    """
    request.app.state.database.check()


RunStoreDep = Annotated[RunStore, Depends(_part("runs"))]
RunChangesDep = Annotated[RunChanges, Depends(_part("run_changes"))]
RunArchiveDep = Annotated[RunArchive, Depends(_part("run_archive"))]
RunDeletionDep = Annotated[RunDeletion, Depends(_part("run_deletion"))]
RunExportsDep = Annotated[ModelExports, Depends(_part("model_exports"))]
RunPushesDep = Annotated[ModelPushes, Depends(_part("model_pushes"))]
RetentionDep = Annotated[Retention, Depends(_part("retention"))]
StorageReporterDep = Annotated[StorageReporter, Depends(_part("storage_reporter"))]
RunCreatorDep = Annotated[RunCreator, Depends(_part("run_creator"))]
DatabaseDep = Annotated[Database, Depends(_part("database"))]
HistoryDep = Annotated[History, Depends(_part("history"))]
WatchersDep = Annotated[Watchers, Depends(_part("watchers"))]
AlertStoreDep = Annotated[AlertStore, Depends(_part("alerts"))]
DeadLettersDep = Annotated[DeadLetterStore, Depends(_part("dead_letters"))]
WorkersDep = Annotated[WorkerRegistry, Depends(_part("workers"))]
EnginesDep = Annotated[EngineRegistry, Depends(_part("engines"))]
RouterClientDep = Annotated[RouterClient, Depends(_part("router"))]
SettingsDep = Annotated[ControlSettings, Depends(_part("settings"))]

LARGEST_NUMBER = 2**53
"""Largest number in a path or a query: as large as every reader of JSON and the database take."""
Number = Annotated[int, Path(ge=0, le=LARGEST_NUMBER)]
"""Number of an alert, a dead letter or a weights version."""

READERS_AND_CLIENTS = (Scope.viewer, Scope.service, Scope.client)
"""Scopes, besides admin, that may read; ``mor_core.visibility`` redacts the answers."""

Admin = Annotated[Principal, Depends(require())]
Reader = Annotated[Principal, Depends(require(Scope.viewer, Scope.service))]
ReaderOrClient = Annotated[Principal, Depends(require(*READERS_AND_CLIENTS))]
ReaderOrOwner = Annotated[Principal, Depends(require(*READERS_AND_CLIENTS, own="name"))]
LabellerOrAdmin = Annotated[Principal, Depends(require(Scope.labeller))]
ReaderOrLabeller = Annotated[Principal, Depends(require(Scope.viewer, Scope.service, Scope.labeller))]
Service = Annotated[Principal, Depends(require(Scope.service))]


def bearer_token(request: Request) -> str:
    """Return the token of a request whose caller is known, to pass it on to the router."""
    return request.headers["Authorization"].partition(" ")[2]
