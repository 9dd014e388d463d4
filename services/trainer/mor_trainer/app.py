"""Run control and status API."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from mor_core.service import create_service

from mor_trainer import __version__, api_runs, api_status, api_weights, api_worker
from mor_trainer.config import ControlSettings
from mor_trainer.database import Database
from mor_trainer.history import History
from mor_trainer.ingest import Ingest, Watchers
from mor_trainer.store import RunStore

_PAGE = Path(__file__).parent / "static" / "index.html"


def create_app(settings: ControlSettings) -> FastAPI:
    """The run-control service."""
    database = Database(settings.runs_dir / "history.sqlite3")
    runs = RunStore(database, settings.run_lease_s)
    history = History(database, runs, samples_kept=settings.samples_kept, events_kept=settings.events_kept)
    watchers = Watchers()
    ingest: Ingest | None = None

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal ingest
        ingest = Ingest(settings, runs, history, watchers)
        try:
            async with ingest.running():
                yield
        finally:
            database.close()

    async def queue_server() -> str | None:
        return "not started" if ingest is None else ingest.reachable

    app = create_service(
        "MoR trainer",
        settings,
        lifespan,
        {"queue_server": queue_server},
        version=__version__,
        description="Runs: create, watch, pause, resume, stop. Weight files for the rollout service.",
    )
    app.state.settings, app.state.runs, app.state.history, app.state.watchers = settings, runs, history, watchers
    for api in (api_worker, api_runs, api_status, api_weights):
        app.include_router(api.router)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE, headers={"Cache-Control": "no-cache"})

    return app
