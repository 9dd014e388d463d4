"""App factory of run control and status API."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
from collections.abc import AsyncIterator

import httpx
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from mor_core import disk_full, service_info
from mor_core.background import Work, in_background
from mor_core.errors import Unavailable
from mor_core.failures import describe_failure
from mor_core.openapi import problems
from mor_core.problems import of_error
from mor_core.service import create_service

from mor_trainer import __version__
from mor_trainer.config import ControlSettings
from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.blob_sweeper import keep_sweeping
from mor_trainer.control.client_tokens import ClientTokens
from mor_trainer.control.database import Database
from mor_trainer.control.dead_letter_store import DeadLetterStore
from mor_trainer.control.engine_registry import EngineRegistry
from mor_trainer.control.history import History
from mor_trainer.control.ingest import Ingest, Watchers
from mor_trainer.control.retention import Retention
from mor_trainer.control.router_client import RouterClient
from mor_trainer.control.run_creator import RunCreator
from mor_trainer.control.run_key_sweeper import RunKeySweeper, keep_sweeping_keys
from mor_trainer.control.run_store import RunStore
from mor_trainer.control.webhook import Webhook
from mor_trainer.control.worker_registry import WorkerRegistry
from mor_trainer.routes import ROUTERS
from mor_trainer.routes.dashboard import add_dashboard
from mor_trainer.routes.dependencies import known_query
from mor_trainer.trackers import Trackers, configured

_TRACKERS_S = 3.0
"""Time for trackers to take what still waits when the service stops; Kubernetes allows 30 s for the whole."""
_RETRY_S = 5.0
"""Seconds after which a request that the database could not store may be sent again."""


def create_app(settings: ControlSettings, router_transport: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """Create the run-control service. ``router_transport`` replaces the network to the router in tests."""
    database = Database(settings.runs_dir / "history.sqlite3")
    alerts = AlertStore(database, webhook=settings.alert_webhook_url is not None)
    dead_letters = DeadLetterStore(database, settings.letters_kept)
    runs = RunStore(database, alerts, dead_letters, settings.run_lease_s)
    history = History(
        database, runs, alerts, dead_letters, samples_kept=settings.samples_kept, events_kept=settings.events_kept
    )
    disk_full.export_room({"runs": settings.runs_dir})
    watchers = Watchers(settings.max_event_readers)
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
        others: list[Work] = [
            Webhook(settings, alerts).run,
            functools.partial(keep_sweeping, settings.blob_dir, runs),
            functools.partial(keep_sweeping_keys, RunKeySweeper(ingest.redis, runs)),
            Retention(settings, runs, history).keep_sweeping,
        ]
        try:
            async with in_background(app.state.tokens.keep_refreshed, others=others), ingest.running():
                yield
        finally:
            await app.state.run_creator.close()
            await asyncio.to_thread(trackers.close, _TRACKERS_S)
            database.close()

    async def queue_server() -> str | None:
        return "not started" if ingest is None else ingest.reachable

    async def history_problem() -> str | None:
        reason = (None if ingest is None else ingest.unstored) or database.problem()
        return reason and f"the history cannot be written ({reason}); make room on the disk of MOR_RUNS_DIR"

    async def host_info() -> service_info.HostInfo:
        return service_info.HostInfo(
            disks=service_info.disks({"runs": settings.runs_dir}),
            queue_server=None if ingest is None else await service_info.queue_server(ingest.redis),
        )

    app = create_service(
        "MoR trainer",
        settings,
        lifespan,
        {"queue_server": queue_server, "history": history_problem},
        version=__version__,
        description="Create, watch, pause, resume and stop runs. Weight files for the rollout service.",
        host_info=host_info,
    )
    app.add_exception_handler(sqlite3.OperationalError, _history_refuses)
    app.state.settings, app.state.runs, app.state.history, app.state.watchers = settings, runs, history, watchers
    app.state.run_creator = RunCreator(runs, watchers)
    app.state.alerts, app.state.dead_letters, app.state.workers = (
        alerts,
        dead_letters,
        WorkerRegistry(settings.run_lease_s),
    )
    app.state.engines = EngineRegistry()
    app.state.router = RouterClient(settings, router_transport)
    app.state.tokens = ClientTokens(app.state.tokens, app.state.router, settings.service_token)
    for router in ROUTERS:
        app.include_router(router, dependencies=[Depends(known_query)], responses=problems(422, 503))
    add_dashboard(app)
    return app


async def _history_refuses(_: Request, error: Exception) -> JSONResponse:
    """Answer a request that changes something while the database takes nothing; workers repeat theirs."""
    reason = f"the history cannot be written now ({describe_failure(error)}); make room on the disk of MOR_RUNS_DIR"
    return of_error(Unavailable(reason, _RETRY_S))
