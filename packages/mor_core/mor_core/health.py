"""Routes ``/healthz`` (the event loop runs), ``/startupz`` (the start is over) and ``/readyz`` (the service can work).

The start is this process's own, such as that of an engine. What the service needs of others, such as the queue server,
counts for ``/readyz`` alone: a process that is killed because another one is away would have to begin its start again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from mor_core.auth import public
from mor_core.background import ended_tasks
from mor_core.failures import describe_failure

ReadyCheck = Callable[[], Awaitable[str | None]]
"""Function that returns ``None`` if its part is ready, or a sentence that names the missing part."""

_CHECK_TIMEOUT_S = 5.0
"""Seconds for one check, below the usual time limits of probes."""

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Report that the process is alive")
@public
async def healthz() -> dict[str, str]:
    return {"status": "alive"}


async def _state(check: ReadyCheck) -> str | None:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return await check()
    except Exception as error:  # any exception of a check means that its part is not ready
        return describe_failure(error)


async def _missing(checks: Mapping[str, ReadyCheck]) -> dict[str, str]:
    return {name: reason for name, check in checks.items() if (reason := await _state(check)) is not None}


@router.get(
    "/startupz",
    summary="Report whether the start of the process is over",
    description="`missing`: parts of this process that have not started. It does not depend on other services.",
    responses={503: {"description": "The start goes on.", "content": {"application/json": {}}}},
)
@public
async def startupz(request: Request) -> JSONResponse:
    missing = await _missing(request.app.state.start_checks)
    return JSONResponse({"started": not missing, "missing": missing}, 503 if missing else 200)


@router.get(
    "/readyz",
    summary="Report whether the service can work",
    description="`missing`: parts without which it cannot work, with the reason. `degraded`: background tasks that "
    "ended and that it can work without until they start again.",
    responses={503: {"description": "The missing parts.", "content": {"application/json": {}}}},
)
@public
async def readyz(request: Request) -> JSONResponse:
    missing = await _missing(request.app.state.ready_checks)
    missing |= ended_tasks(essential=True)
    answer = {"ready": not missing, "missing": missing, "degraded": ended_tasks(essential=False)}
    return JSONResponse(answer, 503 if missing else 200)
