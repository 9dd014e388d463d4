"""Common parts of the HTTP services: app factory and server.

A service's ``app.py`` calls ``create_service`` and adds its routes; its command line calls ``serve``.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mor_core import atomic, health, logs, openapi, problems, service_info, tracing
from mor_core.api_page import add_api_page
from mor_core.auth import TokenFile
from mor_core.errors import TooLarge
from mor_core.response_headers import ProtectResponses
from mor_core.settings import ServiceSettings

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

log = structlog.get_logger(__name__)


class LimitRequestSize:
    """ASGI middleware that answers a request body over ``max_bytes`` with 413, even if its length is not declared."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        cure = f"request bodies are limited to {self._max_bytes} bytes; send fewer items or images in one request"
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await problems.problem(413, TooLarge.title, f"the body has {int(declared)} bytes; {cure}")(
                scope, receive, send
            )
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise HTTPException(TooLarge.status, cure)  # FastAPI's body parser passes on no other type
            return message

        await self._app(scope, bounded, send)


class _ServiceApp(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        return ProtectResponses(super().build_middleware_stack())

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
) -> FastAPI:
    """Create a FastAPI app with problem+json, tokens, request limits, protected responses, health, service information,
    metrics and the page ``/docs``.

    ``ready_checks`` is kept by reference: a lifespan may add to it. ``host_info`` describes the host for ``/v1/about``.
    """
    app = _ServiceApp(
        title=title, version=version, description=description, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.tokens = TokenFile(settings.tokens_file)
    app.state.ready_checks = ready_checks
    app.state.gather_host_info = host_info
    app.state.started_at = time.time()
    problems.install(app)
    app.add_middleware(LimitRequestSize, max_bytes=settings.max_request_bytes)
    app.include_router(health.router)
    app.include_router(service_info.router)
    add_api_page(app)
    return app


def serve(app: FastAPI, settings: ServiceSettings, *, name: str, port_file: Path | None = None) -> None:
    """Serve ``app`` until SIGTERM or Ctrl-C. Once it listens, write its address to ``port_file``."""
    logs.configure(settings.log_level, settings.log_format, service=name)
    tracing.configure(f"mor-{name}")
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
                timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_s)),
                ssl_certfile=settings.tls_cert_file,
                ssl_keyfile=settings.tls_key_file,
            )
        )
        server.run(sockets=[listener])
