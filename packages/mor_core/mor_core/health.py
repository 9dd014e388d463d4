"""Routes ``/healthz`` (the event loop runs), ``/readyz`` (the service can work) and ``/metrics``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

ReadyCheck = Callable[[], Awaitable[str | None]]
"""Function that returns ``None`` if its part is ready, or a sentence that names the missing part."""

_CHECK_TIMEOUT_S = 5.0
"""Seconds for one check, below the usual time limits of probes."""

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Report that the process is alive")
async def healthz() -> dict[str, str]:
    return {"status": "alive"}


async def _state(check: ReadyCheck) -> str | None:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return await check()
    except Exception as error:  # any exception of a check means that its part is not ready
        return f"{type(error).__name__}: {error}"


@router.get(
    "/readyz",
    summary="Report whether the service can work",
    responses={503: {"description": "The missing parts.", "content": {"application/json": {}}}},
)
async def readyz(request: Request) -> JSONResponse:
    checks: Mapping[str, ReadyCheck] = request.app.state.ready_checks
    missing = {name: reason for name, check in checks.items() if (reason := await _state(check)) is not None}
    return JSONResponse({"ready": not missing, "missing": missing}, 503 if missing else 200)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_LATEST.partition(";")[0]: {"schema": {"type": "string"}}}}},
)
async def metrics() -> Response:
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)
