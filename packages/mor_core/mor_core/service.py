"""Common parts of the HTTP services: app factory and server.

A service's ``app.py`` calls ``create_service`` and adds its routes; its command line calls ``process.load``,
``process.begin`` and ``serve``.
"""

from __future__ import annotations

import math
import resource
import time
from collections import ChainMap
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, cast

import structlog
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from mor_core import atomic, health, metrics_server, openapi, problems, process, service_info, writable
from mor_core.api_page import add_api_page
from mor_core.auth import Principal, TokenFile, access_of, public
from mor_core.certificates import server_context
from mor_core.http_protocol import HttpProtocol, OpenConnections
from mor_core.json_route import JsonRoute
from mor_core.metrics_server import MetricsServer
from mor_core.request_guard import RequestGuard
from mor_core.response_headers import ProtectResponses
from mor_core.settings import ServiceSettings
from mor_core.token_watch import WatchTokens

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_OTHER_FILES = 1024
"""Files and connections of a process besides those of its callers: a usual limit for all of them."""

log = structlog.get_logger(__name__)


class _ServiceApp(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        return ProtectResponses(super().build_middleware_stack(), self.title)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            openapi.add_problems(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema


def create_service(
    title: str,
    settings: ServiceSettings,
    lifespan: Lifespan,
    ready_checks: Mapping[str, health.ReadyCheck],
    *,
    version: str,
    description: str = "",
    host_info: service_info.GatherHostInfo | None = None,
    start_checks: Mapping[str, health.ReadyCheck] | None = None,
) -> FastAPI:
    """Create a FastAPI app with problem+json, tokens, request limits, protected responses, health, service information,
    metrics and the page ``/docs``.

    ``ready_checks`` is kept by reference: a lifespan may add to it. ``start_checks`` say whether the parts of this
    process have started, where that takes longer than the lifespan's begin. ``host_info`` describes the host for
    ``/v1/about``.
    """
    app = _ServiceApp(
        title=title, version=version, description=description, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    # A redirect to the path without its last slash repeats the caller's Host header and, behind an ingress that ends
    # TLS, the scheme http: the caller would repeat body and token there.
    app.router.redirect_slashes = False
    app.state.tokens = TokenFile(settings.tokens_file)
    for route in app.routes:
        public(route.endpoint)  # type: ignore[attr-defined]  # FastAPI's own: the OpenAPI document and its page
    app.state.ready_checks = ready_checks
    app.state.start_checks = start_checks or {}
    app.state.gather_host_info = host_info
    app.state.started_at = time.time()
    problems.install(app)
    app.router.route_class = JsonRoute
    app.add_middleware(RequestGuard, service=app, settings=settings)

    async def identify(token: str) -> Principal:
        found: Principal = await app.state.tokens.identify(token)  # a lifespan may replace the tokens
        return found

    app.add_middleware(WatchTokens, identify=identify)
    app.include_router(health.router)
    app.state.metrics_server = MetricsServer(settings)
    if settings.metrics_port is None:
        app.include_router(metrics_server.router)
    else:
        app.state.ready_checks = ChainMap({"metrics": app.state.metrics_server.ready}, ready_checks)  # type: ignore[arg-type]
    app.include_router(service_info.router)
    add_api_page(app)
    return app


def serve(app: FastAPI, settings: ServiceSettings, *, port_file: Path | None = None) -> None:
    """Serve ``app`` until SIGTERM or Ctrl-C. Once it listens, write its address to ``port_file``.

    Raises:
        Invalid: the port cannot be taken, or the certificate cannot be used.
    """
    _allow_open_files(settings.max_connections)
    if settings.tokens_file is None:
        log.warning(
            "MOR_TOKENS_FILE is not set, so no token of a tokens file opens any route; set it to a JSON list of "
            "{name, scope, sha256}",
            open_to_everybody=open_routes(app, settings),
        )

    certificate, key = settings.tls_cert_file, settings.tls_key_file
    tls = None if certificate is None or key is None else server_context(certificate, key)

    def server_of(served: ASGIApp) -> uvicorn.Server:
        return uvicorn.Server(
            uvicorn.Config(
                served,
                log_config=None,
                http=cast(Any, partial(HttpProtocol, connections=OpenConnections(settings), settings=settings)),
                ws="none",  # every route is plain HTTP
                timeout_keep_alive=math.ceil(settings.idle_timeout_s),
                timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_s)),
                ssl_context_factory=None if tls is None else lambda *_: tls,
            )
        )

    figures: MetricsServer = app.state.metrics_server
    with process.listen(settings.host, settings.port, "MOR_HOST, MOR_PORT") as listener, figures.serving(server_of):
        address = process.url_of(listener, tls=tls is not None)
        log.info("listening", address=address)
        if port_file is not None:
            atomic.write(port_file, address.encode())
        server_of(app).run(sockets=[listener])


def check_start(settings: ServiceSettings, port_file: Path | None) -> None:
    """Check that a service can listen and say where, before it loads a model or anything else that takes long.

    Raises:
        Invalid: a port is not free, or ``port_file`` cannot be written.
    """
    if port_file is not None:
        writable.check_file(port_file, "--port-file")
    with process.listen(settings.host, settings.port, "MOR_HOST, MOR_PORT"):
        if settings.metrics_port is not None:
            host = settings.metrics_host or settings.host
            process.listen(host, settings.metrics_port, "MOR_METRICS_HOST, MOR_METRICS_PORT").close()


def open_routes(app: FastAPI, settings: ServiceSettings) -> list[str]:
    """Return the paths that answer callers without a token."""
    paths = {route.path for route in app.routes if (access := access_of(route)) is not None and access.scopes is None}  # type: ignore[attr-defined]
    if settings.metrics_port is not None:
        paths.add(f"/metrics on port {settings.metrics_port}")
    return sorted(paths)


def _allow_open_files(connections: int) -> None:
    """Raise this process's limit of open files, so that connections leave some for queue server and files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
