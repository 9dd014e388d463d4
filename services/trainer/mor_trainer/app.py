"""App factory of run control and status API."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import Depends, FastAPI
from mor_core import disk_full, service_info
from mor_core.background import Work, in_background
from mor_core.openapi import problems
from mor_core.service import create_service
from mor_core.streams import connect

from mor_trainer import __version__
from mor_trainer.config import ControlSettings
from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.blob_sweeper import keep_sweeping
from mor_trainer.control.client_tokens import ClientTokens
from mor_trainer.control.database import Database, HistoryUnavailable
from mor_trainer.control.database_address import Address, history_address
from mor_trainer.control.dead_letter_store import DeadLetterStore
from mor_trainer.control.engine_registry import EngineRegistry
from mor_trainer.control.history import History
from mor_trainer.control.ingest import Ingest, Watchers
from mor_trainer.control.model_exports import ModelExports
from mor_trainer.control.model_pushes import ModelPushes
from mor_trainer.control.ownership import Ownership
from mor_trainer.control.retention import Retention
from mor_trainer.control.router_client import RouterClient
from mor_trainer.control.run_archive import RunArchive
from mor_trainer.control.run_changes import RunChanges
from mor_trainer.control.run_creator import RunCreator
from mor_trainer.control.run_deletion import RunDeletion
from mor_trainer.control.run_guards import RunGuards
from mor_trainer.control.run_key_sweeper import RunKeySweeper, keep_sweeping_keys
from mor_trainer.control.run_store import RunStore
from mor_trainer.control.storage_report import StorageReporter
from mor_trainer.control.webhook import Webhook
from mor_trainer.control.worker_registry import WorkerRegistry
from mor_trainer.routes import ROUTERS
from mor_trainer.routes.dashboard import add_dashboard
from mor_trainer.routes.dependencies import known_query, owned_history
from mor_trainer.trackers import Trackers, configured

_TRACKERS_S = 3.0
"""Time for trackers to take what still waits when the service stops; Kubernetes allows 30 s for the whole."""


@dataclass(frozen=True)
class _Parts:
    """Parts of run control that the history is behind."""

    address: Address
    database: Database
    alerts: AlertStore
    dead_letters: DeadLetterStore
    runs: RunStore
    history: History
    guards: RunGuards

    @classmethod
    def of(cls, settings: ControlSettings) -> _Parts:
        """
        Raises:
            Invalid: ``MOR_DATABASE_URL`` names no database of a kind that run control uses.
        """
        address = history_address(settings)
        database = Database(address)
        alerts = AlertStore(database, webhook=settings.alert_webhook_url is not None)
        dead_letters = DeadLetterStore(database, settings.letters_kept)
        runs = RunStore(database, alerts, dead_letters, settings.run_lease_s)
        history = History(
            database, runs, alerts, dead_letters, samples_kept=settings.samples_kept, events_kept=settings.events_kept
        )
        guards = RunGuards(settings.runs_dir, database, runs, alerts)
        return cls(address, database, alerts, dead_letters, runs, history, guards)

    def folders(self, settings: ControlSettings) -> dict[str, Path]:
        """Return the folders whose disks fill, by a fixed word."""
        if settings.database_url is None or self.address.file is None:
            return {"runs": settings.runs_dir}
        return {"runs": settings.runs_dir, "history": self.address.file.parent}


def create_app(settings: ControlSettings, router_transport: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """Create the run-control service. ``router_transport`` replaces the network to the router in tests."""
    parts = _Parts.of(settings)
    database, runs = parts.database, parts.runs
    folders = parts.folders(settings)
    disk_full.export_room(folders)
    watchers = Watchers(settings.max_event_readers)
    ingest: Ingest | None = None

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal ingest
        loop = asyncio.get_running_loop()

        def warn(run: str, reason: str) -> None:
            with contextlib.suppress(HistoryUnavailable):
                runs.warn(run, "tracker_failed", reason)
            watchers.wake(run)

        def warn_from_thread(run: str, reason: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(warn, run, reason)

        trackers = Trackers(configured(settings), warn_from_thread, settings.tracker_queue)
        redis = connect(settings)
        ingest = Ingest(settings, runs, parts.history, watchers, trackers, guards=parts.guards, redis=redis)
        former = None if settings.database_url is None else settings.default_history
        ownership = Ownership(database, redis, settings.control_lease_s, runs.load, former=former)
        owners: list[Work] = [
            Webhook(settings, parts.alerts).run,
            functools.partial(keep_sweeping, settings.blob_dir, runs),
            functools.partial(keep_sweeping_keys, RunKeySweeper(redis, runs)),
            app.state.retention.keep_sweeping,
            functools.partial(app.state.run_deletion.keep_finishing, redis),
        ]

        @contextlib.asynccontextmanager
        async def owning() -> AsyncIterator[None]:
            async with in_background(others=owners), ingest.running():
                yield

        try:
            await ownership.look()
            keep = functools.partial(ownership.keep, owning)
            async with in_background(app.state.tokens.keep_refreshed, ingest.keep_pinging, keep):
                yield
        finally:
            await app.state.run_creator.close()
            await app.state.model_pushes.close()
            await app.state.model_exports.close()
            await asyncio.to_thread(trackers.close, _TRACKERS_S)
            await ownership.release()
            await redis.aclose()
            database.close()

    async def queue_server() -> str | None:
        return "not started" if ingest is None else ingest.reachable

    async def history_problem() -> str | None:
        if not database.owned:
            return database.standby_reason
        return (None if ingest is None else ingest.unstored) or database.problem()

    async def host_info() -> service_info.HostInfo:
        return service_info.HostInfo(
            disks=service_info.disks(folders),
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
    _set_state(app, settings, parts, watchers)
    app.state.router = RouterClient(settings, router_transport)
    app.state.tokens = ClientTokens(app.state.tokens, app.state.router, settings.service_token)
    for router in ROUTERS:
        app.include_router(
            router, dependencies=[Depends(known_query), Depends(owned_history)], responses=problems(422, 503)
        )
    add_dashboard(app)
    return app


def _set_state(app: FastAPI, settings: ControlSettings, parts: _Parts, watchers: Watchers) -> None:
    """Set the parts that routes depend on."""
    state = app.state
    state.settings, state.database, state.watchers = settings, parts.database, watchers
    state.runs, state.history = parts.runs, parts.history
    state.alerts, state.dead_letters = parts.alerts, parts.dead_letters
    state.run_creator = RunCreator(parts.runs, watchers)
    state.run_changes = RunChanges(parts.database, parts.runs)
    state.run_archive = RunArchive(parts.database, parts.runs)
    state.run_deletion = RunDeletion(settings, parts.database, parts.runs)
    state.retention = Retention(settings, parts.database, parts.runs, parts.history)
    state.model_exports = ModelExports(settings, parts.database, parts.history)
    state.model_pushes = ModelPushes(settings, state.model_exports)
    state.storage_reporter = StorageReporter(settings, parts.database, state.run_deletion)
    state.workers, state.engines = WorkerRegistry(settings.run_lease_s), EngineRegistry()
