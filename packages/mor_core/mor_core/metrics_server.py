"""``/metrics``: behind a token on the service's own port, or on a port of its own that only Prometheus reaches.

The figures name clients, weights and rewards. With ``MOR_METRICS_PORT`` a second server answers ``GET /metrics`` and
nothing else, without a token, on an address that no ingress leads to. It runs in a thread with its own event loop, so
that it answers while the service's loop is busy, and ends with the process. Where it ends by itself, ``/readyz`` says
so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
import uvicorn
from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from mor_core import process
from mor_core.auth import Scope, require
from mor_core.response_headers import ProtectResponses
from mor_core.settings import ServiceSettings

_STOP_S = 5.0
"""Seconds for a scrape in progress to end; the process does not wait longer."""

MakeServer = Callable[[ASGIApp], uvicorn.Server]
"""Makes a server with the limits and certificates of the service."""

log = structlog.get_logger(__name__)

router = APIRouter(tags=["health"])


def _page() -> Response:
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_LATEST.partition(";")[0]: {"schema": {"type": "string"}}}}},
    dependencies=[Depends(require(Scope.metrics, Scope.viewer))],
)
async def metrics() -> Response:
    return _page()


class MetricsServer:
    """Server of ``/metrics`` on a port of its own, if the settings name one."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._thread: threading.Thread | None = None

    async def ready(self) -> str | None:
        """Return the reason why the figures cannot be read; ``None`` if they can, or need no port."""
        if self._thread is None or self._thread.is_alive():
            return None
        return "the server of MOR_METRICS_PORT ended; the log has the reason; restart the process"

    @contextmanager
    def serving(self, make_server: MakeServer) -> Iterator[None]:
        """Serve during the body.

        Raises:
            Invalid: the port cannot be taken.
        """
        settings = self._settings
        if settings.metrics_port is None:
            yield
            return
        with process.listen(
            settings.metrics_host or settings.host, settings.metrics_port, "MOR_METRICS_HOST, MOR_METRICS_PORT"
        ) as listener:
            log.info("metrics", address=f"{process.url_of(listener, tls=settings.tls_cert_file is not None)}/metrics")

            async def page(_: Request) -> Response:
                return _page()

            server = make_server(ProtectResponses(Starlette(routes=[Route("/metrics", page)])))
            # Outside of the main thread uvicorn leaves signals alone. A daemon, so that it cannot hold up the end.
            self._thread = threading.Thread(
                target=server.run, kwargs={"sockets": [listener]}, name="metrics", daemon=True
            )
            self._thread.start()
            try:
                yield
            finally:
                server.should_exit = True
                self._thread.join(_STOP_S)
