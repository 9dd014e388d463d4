"""What routes are given: the parts of the service, and who may call."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from mor_core.auth import Principal, Scope, require

from mor_trainer.config import ControlSettings
from mor_trainer.history import History
from mor_trainer.ingest import Watchers
from mor_trainer.store import RunStore


def _runs(request: Request) -> RunStore:
    runs: RunStore = request.app.state.runs
    return runs


def _history(request: Request) -> History:
    history: History = request.app.state.history
    return history


def _watchers(request: Request) -> Watchers:
    watchers: Watchers = request.app.state.watchers
    return watchers


def _settings(request: Request) -> ControlSettings:
    settings: ControlSettings = request.app.state.settings
    return settings


Runs = Annotated[RunStore, Depends(_runs)]
Past = Annotated[History, Depends(_history)]
Watching = Annotated[Watchers, Depends(_watchers)]
Configured = Annotated[ControlSettings, Depends(_settings)]

Admin = Annotated[Principal, Depends(require())]
Reader = Annotated[Principal, Depends(require(Scope.viewer, Scope.service))]
Service = Annotated[Principal, Depends(require(Scope.service))]
