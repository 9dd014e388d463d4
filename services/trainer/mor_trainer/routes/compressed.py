"""Compression of large JSON answers for callers that accept gzip."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Coroutine
from typing import Any

from anyio import to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute

_LEAST_BYTES = 20_000
"""A smaller answer arrives as fast uncompressed."""
_LEVEL = 1
"""Level 9 makes a history an eighth smaller than level 1, and takes nine times as long."""


class CompressedRoute(APIRoute):
    """Route that sends large JSON as gzip. The bytes differ from the uncompressed ones, so the entity tag is weak."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def compressed(request: Request) -> Response:
            response = await answer(request)
            content = bytes(response.body)
            wanted = "gzip" in request.headers.get("accept-encoding", "")
            if not wanted or len(content) < _LEAST_BYTES or response.media_type != "application/json":
                return response
            response.body = await to_thread.run_sync(lambda: gzip.compress(content, _LEVEL))
            response.headers["Content-Length"] = str(len(response.body))
            response.headers["Content-Encoding"] = "gzip"
            response.headers["Vary"] = "Authorization, Accept-Encoding"
            if "etag" in response.headers:
                response.headers["ETag"] = f"W/{response.headers['etag']}"
            return response

        return compressed
