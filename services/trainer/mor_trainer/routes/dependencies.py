"""What routes are given: the parts of the service, and who may call."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from mor_core.auth import Principal, Scope, require

from mor_trainer.config import ControlSettings
from mor_trainer.control.alerts import Alerts
from mor_trainer.control.history import History
from mor_trainer.control.ingest import Watchers
from mor_trainer.control.letters import Letters
from mor_trainer.control.store import RunStore
from mor_trainer.control.workers import Workers


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


def _alerts(request: Request) -> Alerts:
    alerts: Alerts = request.app.state.alerts
    return alerts


def _letters(request: Request) -> Letters:
    letters: Letters = request.app.state.letters
    return letters


def _workers(request: Request) -> Workers:
    workers: Workers = request.app.state.workers
    return workers


Runs = Annotated[RunStore, Depends(_runs)]
Past = Annotated[History, Depends(_history)]
Watching = Annotated[Watchers, Depends(_watchers)]
Alarms = Annotated[Alerts, Depends(_alerts)]
Dead = Annotated[Letters, Depends(_letters)]
Crew = Annotated[Workers, Depends(_workers)]
Configured = Annotated[ControlSettings, Depends(_settings)]

Admin = Annotated[Principal, Depends(require())]
Reader = Annotated[Principal, Depends(require(Scope.viewer, Scope.service))]
ReaderOrClient = Annotated[Principal, Depends(require(Scope.viewer, Scope.service, Scope.client))]
Service = Annotated[Principal, Depends(require(Scope.service))]
