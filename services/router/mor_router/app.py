"""The router's HTTP service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from mor_core import service_info
from mor_core.health import ReadyCheck
from mor_core.service import create_service

from mor_router import __version__
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.pool import Tokens
from mor_router.config import RouterSettings
from mor_router.routes import clients, objectives, rewards, status
from mor_router.wiring import running

_DESCRIPTION = """\
Enrols clients, asks them for scores, and fuses the scores into one reward, trusting each client as the gate learned to
for the input and the objective. Errors are `application/problem+json` (RFC 9457).
"""


def create_app(settings: RouterSettings, policy: EgressPolicy | None = None) -> FastAPI:
    """The service. ``policy`` replaces the egress policy of the settings, for a resolver of its own."""
    checks: dict[str, ReadyCheck] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(settings, policy or EgressPolicy.of(settings)) as router:
            app.state.router = router
            app.state.tokens = Tokens(app.state.tokens, router.pool)
            checks["router"] = router.ready
            yield

    async def host_info() -> service_info.HostInfo:
        return service_info.HostInfo(queue_server=await service_info.queue_server(app.state.router.redis))

    app = create_service(
        "MoR router", settings, lifespan, checks, version=__version__, description=_DESCRIPTION, host_info=host_info
    )
    for part in (clients, objectives, rewards, status):
        app.include_router(part.routes)
    return app
