"""Routes that take JSON: parsed and validated by a bounded parser, off the event loop where it takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from mor_core import bounded_json
from mor_core.tasks import stop

SMALL_BODY_BYTES = 1 << 20
"""Largest body of a route that carries no pictures and no batches: a specification or a change of a record."""
OWN_THREAD_BYTES = 16 << 10
"""A larger body is parsed on the parser's thread: below, changing the thread takes longer than parsing."""

_parser = ThreadPoolExecutor(1, thread_name_prefix="json")
"""Parses one large body at a time: parsing holds the interpreter's lock, so a second thread would gain nothing."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonRoute(APIRoute):
    """Route with a JSON body of at most ``SMALL_BODY_BYTES``. Every route with a body is one of these classes."""

    most_body_bytes: int | None = SMALL_BODY_BYTES
    """Largest body; ``None``: as large as the service's ``max_request_bytes``."""
    ends_with_caller = False
    """True if the work is cancelled when its caller hangs up."""

    def get_route_handler(self) -> Handler:
        answer = super().get_route_handler()
        if self.body_field is None:
            return answer
        body: Any = self.body_field.field_info.annotation
        adapter: TypeAdapter[Any] = TypeAdapter(body)

        async def parsed(request: Request) -> Response:
            if not _is_json(request.headers.get("content-type", "")):
                return await answer(request)
            content = b"".join([part async for part in request.stream()])
            if not content:
                return await answer(_ReadRequest(request, b"", None))
            parse = partial(bounded_json.parse, adapter, content)
            if len(content) > OWN_THREAD_BYTES:
                value = await asyncio.get_running_loop().run_in_executor(_parser, parse)
            else:
                value = parse()
            del content, parse  # the work may take long, and the parsed value holds all of it
            request = _ReadRequest(request, b"parsed", value)
            return await (_with_caller(answer, request) if self.ends_with_caller else answer(request))

        return parsed


class LargeRoute(JsonRoute):
    """Route of a request for work on groups and pictures, which ends when its caller hangs up."""

    most_body_bytes = None
    ends_with_caller = True


class UploadRoute(JsonRoute):
    """Route of a large upload, whose work goes on when its caller hangs up."""

    most_body_bytes = None


class _ReadRequest(Request):
    """Request whose body was read and validated; FastAPI's own validation passes the value on."""

    def __init__(self, request: Request, body: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._body = body
        self._value = value

    async def body(self) -> bytes:
        return self._body

    async def json(self) -> Any:
        return self._value


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def _with_caller(answer: Handler, request: Request) -> Response:
    """Answer a request whose body was read, and cancel the work when the caller hangs up."""
    work = asyncio.create_task(answer(request))
    gone = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        return Response(status_code=499)  # nobody reads it; nginx gives a caller that hung up this status in its log
    finally:
        await stop([task for task in (work, gone) if not task.done()])


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
