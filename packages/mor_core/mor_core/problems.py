"""Errors as ``application/problem+json`` (RFC 9457), the one error format of every service."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mor_core.errors import MorError, Unauthorized, Unavailable
from mor_core.failures import describe
from mor_core.printable import visible

MEDIA_TYPE = "application/problem+json"
_SHOWN_PATH = 200
"""Characters of an unknown path that the answer repeats."""

log = structlog.get_logger(__name__)


def problem(status: int, title: str, detail: str, headers: dict[str, str] | None = None, **extra: Any) -> JSONResponse:
    """Make a problem response; ``extra`` members are added to the standard ones."""
    readable = detail.encode(errors="backslashreplace").decode()  # half a surrogate pair of a request has no UTF-8
    body = {"type": "about:blank", "title": title, "status": status, "detail": readable, **extra}
    return JSONResponse(body, status, headers, media_type=MEDIA_TYPE)


def of_error(error: MorError, headers: dict[str, str] | None = None) -> JSONResponse:
    """Make the response that ``error`` stands for, with further ``headers``."""
    headers = dict(headers or {})
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return problem(error.status, error.title, str(error), headers)


async def _mor_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MorError)
    return of_error(error)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return problem(422, "Invalid input", describe(error))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND and detail == title:  # raised by the framework: no route
        detail = f"no route {visible(request.url.path[:_SHOWN_PATH])}; /docs lists them"
    return problem(error.status_code, title, detail, dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("unhandled error", path=request.url.path, exc_info=error)
    return problem(500, "Internal error", f"{type(error).__name__}; the service's log has the traceback")


def install(app: FastAPI) -> None:
    """Make ``app`` return every error as problem+json."""
    app.add_exception_handler(MorError, _mor_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
