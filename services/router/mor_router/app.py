"""HTTP service of the router."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from mor_core import service_info
from mor_core.health import ReadyCheck
from mor_core.missing_images import MissingImages
from mor_core.openapi import problems
from mor_core.outage_waits import is_server_outage
from mor_core.problems import problem
from mor_core.service import create_service
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from mor_router import __version__
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.pool import RouterTokens
from mor_router.config import RouterSettings
from mor_router.routes import adapters, audits, clients, objectives, proposals, rewards, status
from mor_router.wiring import open_router

_DESCRIPTION = """\
Enrols clients, requests their scores, and fuses the scores into one reward, weighing each client as the gate learned
for the input and the objective. Errors are `application/problem+json` (RFC 9457).
"""
_RETRY_S = "5"
"""``Retry-After`` while Redis cannot be reached: a restarted server answers within seconds."""


async def _store_failed(_: Request, error: Exception) -> JSONResponse:
    """Answer a call that the store of the router refused."""
    assert isinstance(error, RedisError)
    permission = isinstance(error, NoPermissionError)
    if isinstance(error, ResponseError) and not permission and not is_server_outage(error):
        cure = "delete or restore the key that is named in the log; docs/runbooks.md, unreadable entries"
        return problem(409, "Stored state not usable", f"{error}; {cure}")
    cure = (
        "permit MOR_REDIS_URL's user what docs/operator-guide.md lists"
        if permission
        else "check MOR_REDIS_URL's server"
    )
    return problem(503, "Store unavailable", f"Redis: {error}; {cure}", {"Retry-After": _RETRY_S})


async def _missing_images(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MissingImages)
    return problem(error.status, error.title, str(error), missing_images=error.missing)


def create_app(settings: RouterSettings, egress: EgressPolicy | None = None) -> FastAPI:
    """Create the service. ``egress`` replaces the egress policy of the settings, for another resolver."""
    checks: dict[str, ReadyCheck] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        policy = egress or EgressPolicy.from_settings(settings)
        async with open_router(settings, policy, app.state.tokens) as router:
            app.state.router = router
            app.state.tokens = RouterTokens(app.state.tokens, router.clients.pool)
            checks["router"] = router.ready
            yield

    async def host_info() -> service_info.HostInfo:
        return service_info.HostInfo(queue_server=await service_info.queue_server(app.state.router.resources.redis))

    app = create_service(
        "MoR router", settings, lifespan, checks, version=__version__, description=_DESCRIPTION, host_info=host_info
    )
    app.add_exception_handler(RedisError, _store_failed)
    app.add_exception_handler(MissingImages, _missing_images)
    # Rewards first: every request is compared with the routes in this order, and these come by the hundred per step.
    for part in (rewards, adapters, clients, objectives, proposals, audits, status):
        app.include_router(part.routes, responses=problems(503))
    app.include_router(clients.page_tokens, responses=problems(503))
    for part in (objectives, proposals):
        app.include_router(part.uploads, responses=problems(503))
    return app
