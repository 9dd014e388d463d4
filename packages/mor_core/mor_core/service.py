"""Common parts of the HTTP services: app factory and server.

A service's ``app.py`` calls ``create_service`` and adds its routes; its command line calls ``serve``.
"""

from __future__ import annotations

import math
import resource
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, cast

import structlog
import uvicorn
from fastapi import FastAPI

from mor_core import atomic, health, logs, problems, service_info, tracing
from mor_core.auth import TokenFile
from mor_core.http_protocol import HttpProtocol, OpenConnections
from mor_core.json_route import JsonRoute
from mor_core.request_guard import RequestGuard
from mor_core.settings import ServiceSettings

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_OTHER_FILES = 1024
"""Files and connections of a process besides those of its callers: a usual limit for all of them."""

log = structlog.get_logger(__name__)


def create_service(
    title: str,
    settings: ServiceSettings,
    lifespan: Lifespan,
    ready_checks: Mapping[str, health.ReadyCheck],
    *,
    version: str,
    description: str = "",
    host_info: service_info.GatherHostInfo | None = None,
) -> FastAPI:
    """Create a FastAPI app with problem+json, tokens, request limits, health, service information and metrics.

    ``ready_checks`` is kept by reference: a lifespan may add to it. ``host_info`` describes the host for ``/v1/about``.
    """
    app = FastAPI(title=title, version=version, description=description, lifespan=lifespan)
    app.state.tokens = TokenFile(settings.tokens_file)
    app.state.ready_checks = ready_checks
    app.state.gather_host_info = host_info
    app.state.started_at = time.time()
    problems.install(app)
    app.router.route_class = JsonRoute
    app.add_middleware(RequestGuard, service=app, settings=settings)
    app.include_router(health.router)
    app.include_router(service_info.router)
    return app


def serve(app: FastAPI, settings: ServiceSettings, *, name: str, port_file: Path | None = None) -> None:
    """Serve ``app`` until SIGTERM or Ctrl-C. Once it listens, write its address to ``port_file``."""
    logs.configure(settings.log_level, settings.log_format, service=name)
    tracing.configure(f"mor-{name}")
    _allow_open_files(settings.max_connections)
    with socket.create_server((settings.host, settings.port), reuse_port=False) as listener:
        host, port = listener.getsockname()[:2]
        address = f"{'https' if settings.tls_cert_file else 'http'}://{host}:{port}"
        log.info("listening", address=address)
        if port_file is not None:
            atomic.write(port_file, address.encode())
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                http=cast(Any, partial(HttpProtocol, connections=OpenConnections(settings), settings=settings)),
                ws="none",  # every route is plain HTTP
                timeout_keep_alive=math.ceil(settings.idle_timeout_s),
                timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_s)),
                ssl_certfile=settings.tls_cert_file,
                ssl_keyfile=settings.tls_key_file,
            )
        )
        server.run(sockets=[listener])


def _allow_open_files(connections: int) -> None:
    """Raise this process's limit of open files, so that connections leave some for queue server and files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
