"""``/healthz`` (the event loop turns), ``/readyz`` (the service can do its work) and ``/metrics``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

ReadyCheck = Callable[[], Awaitable[str | None]]
"""Returns ``None`` when the part is ready, else a sentence that says what is missing."""

_CHECK_TIMEOUT_S = 5.0

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="The process is alive")
async def healthz() -> dict[str, str]:
    return {"status": "alive"}


async def _state(check: ReadyCheck) -> str | None:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return await check()
    except Exception as error:  # a check that fails is a part that is not ready, whatever it raised
        return f"{type(error).__name__}: {error}"


@router.get("/readyz", summary="The service can do its work", responses={503: {"description": "What is missing."}})
async def readyz(request: Request) -> JSONResponse:
    checks: Mapping[str, ReadyCheck] = request.app.state.ready_checks
    missing = {name: reason for name, check in checks.items() if (reason := await _state(check)) is not None}
    return JSONResponse({"ready": not missing, "missing": missing}, 503 if missing else 200)


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics() -> Response:
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)
