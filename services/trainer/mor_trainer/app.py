"""Run control and status API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
from fastapi import Depends, FastAPI
from mor_core import service_info
from mor_core.service import create_service
from mor_core.tasks import stop

from mor_trainer import __version__
from mor_trainer.config import ControlSettings
from mor_trainer.control.alerts import Alerts
from mor_trainer.control.client_tokens import ClientTokens
from mor_trainer.control.database import Database
from mor_trainer.control.dead_letter_store import Letters
from mor_trainer.control.history import History
from mor_trainer.control.ingest import Ingest, Watchers
from mor_trainer.control.router import Router
from mor_trainer.control.store import RunStore
from mor_trainer.control.webhook import Webhook
from mor_trainer.control.worker_registry import Workers
from mor_trainer.routes import ROUTERS
from mor_trainer.routes.dashboard import add_dashboard
from mor_trainer.routes.dependencies import known_query
from mor_trainer.trackers import Trackers, configured

_TRACKERS_S = 3.0
"""In which trackers are told what still waits when the service stops."""


def create_app(settings: ControlSettings, router_transport: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """The run-control service. ``router_transport``: another way to the router than the network, for tests."""
    database = Database(settings.runs_dir / "history.sqlite3")
    alerts = Alerts(database, webhook=settings.alert_webhook_url is not None)
    letters = Letters(database, settings.letters_kept)
    runs = RunStore(database, alerts, letters, settings.run_lease_s)
    history = History(
        database, runs, alerts, letters, samples_kept=settings.samples_kept, events_kept=settings.events_kept
    )
    watchers = Watchers()
    ingest: Ingest | None = None

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal ingest
        loop = asyncio.get_running_loop()

        def warn(run: str, reason: str) -> None:
            runs.warn(run, "tracker_failed", reason)
            watchers.wake(run)

        def warn_from_thread(run: str, reason: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(warn, run, reason)

        trackers = Trackers(configured(settings), warn_from_thread, settings.tracker_queue)
        ingest = Ingest(settings, runs, history, watchers, trackers)
        telling = asyncio.create_task(Webhook(settings, alerts).run(), name="webhook")
        try:
            async with ingest.running():
                yield
        finally:
            await stop([telling])
            await asyncio.to_thread(trackers.close, _TRACKERS_S)
            database.close()

    async def queue_server() -> str | None:
        return "not started" if ingest is None else ingest.reachable

    async def host_info() -> service_info.HostInfo:
        return service_info.HostInfo(
            disks=service_info.disks({"runs": settings.runs_dir}),
            queue_server=None if ingest is None else await service_info.queue_server(ingest.redis),
        )

    app = create_service(
        "MoR trainer",
        settings,
        lifespan,
        {"queue_server": queue_server},
        version=__version__,
        description="Runs: create, watch, pause, resume, stop. Weight files for the rollout service.",
        host_info=host_info,
    )
    app.state.settings, app.state.runs, app.state.history, app.state.watchers = settings, runs, history, watchers
    app.state.alerts, app.state.letters, app.state.workers = alerts, letters, Workers()
    app.state.registry = Router(settings, router_transport)
    app.state.tokens = ClientTokens(settings.tokens_file, app.state.registry)
    for router in ROUTERS:
        app.include_router(router, dependencies=[Depends(known_query)])
    add_dashboard(app)
    return app
