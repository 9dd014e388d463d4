"""HTTP service of the router."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from mor_core import service_info
from mor_core.health import ReadyCheck
from mor_core.openapi import problems
from mor_core.service import create_service

from mor_router import __version__
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.pool import RouterTokens
from mor_router.config import RouterSettings
from mor_router.routes import clients, objectives, rewards, status
from mor_router.wiring import open_router

_DESCRIPTION = """\
Enrols clients, requests their scores, and fuses the scores into one reward, weighing each client as the gate learned
for the input and the objective. Errors are `application/problem+json` (RFC 9457).
"""


def create_app(settings: RouterSettings, egress: EgressPolicy | None = None) -> FastAPI:
    """Create the service. ``egress`` replaces the egress policy of the settings, for another resolver."""
    checks: dict[str, ReadyCheck] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_router(settings, egress or EgressPolicy.from_settings(settings)) as router:
            app.state.router = router
            app.state.tokens = RouterTokens(app.state.tokens, router.clients.pool)
            checks["router"] = router.ready
            yield

    async def host_info() -> service_info.HostInfo:
        return service_info.HostInfo(queue_server=await service_info.queue_server(app.state.router.resources.redis))

    app = create_service(
        "MoR router", settings, lifespan, checks, version=__version__, description=_DESCRIPTION, host_info=host_info
    )
    for part in (clients, objectives, rewards, status):
        app.include_router(part.routes, responses=problems(503))
    return app
