"""Entity tags: a poller that has the current state of a run gets 304 and no content."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from anyio import to_thread
from fastapi import Header, Request, Response
from mor_core import auth
from mor_core.auth import Principal
from mor_core.visibility import visible
from pydantic import BaseModel

from mor_trainer.control import redaction
from mor_trainer.control.run_store import RunStore
from mor_trainer.routes.compressed import CompressedRoute
from mor_trainer.routes.dependencies import READERS_AND_CLIENTS

IfNoneMatch = Annotated[str | None, Header(description="ETag of an earlier answer: 304 while nothing has changed.")]


def conditional_responses(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Describe the answers of a conditional route for OpenAPI."""
    return {200: {"model": model}, 304: {"description": "Not changed."}}


def etag_of(run: str, runs: RunStore, caller: Principal) -> str:
    """Return a tag that changes with every change of the run and differs between callers who see different things.

    Raises:
        NotFound: no such run.
    """
    return f'"{run}.{runs.version(run)}.{redaction.view(caller)}"'


def matches(header: str | None, etag: str) -> bool:
    """Return whether an ``If-None-Match`` header names the tag, by weak comparison (RFC 9110, 13.1.2)."""
    if header is None:
        return False
    return header.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in header.split(",")]


async def conditional_response(
    etag: str, if_none_match: str | None, caller: Principal, content: Callable[[], BaseModel]
) -> Response:
    """Return 304 if the caller has the content of ``etag``, else what it may see of ``content()``.

    The JSON is made on another thread.
    """
    if matches(if_none_match, etag):
        return _unchanged(etag)
    body = await to_thread.run_sync(lambda: visible(content(), caller.scope, caller.name).model_dump_json())
    return Response(body, headers=_headers(etag), media_type="application/json")


class PolledRoute(CompressedRoute):
    """Route below ``/v1/runs/{run}`` for polling, open to every caller that may see the run.

    It answers 304 before FastAPI resolves dependencies, which takes longer than all the rest.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def polled(request: Request) -> Response:
            held = request.headers.get("if-none-match")
            if held is None or request.query_params:
                return await answer(request)
            caller = await auth.caller(request, *READERS_AND_CLIENTS)
            current = etag_of(request.path_params["run"], request.app.state.runs, caller)
            return _unchanged(current) if matches(held, current) else await answer(request)

        return polled


def _unchanged(etag: str) -> Response:
    return Response(status_code=304, headers=_headers(etag))


def _headers(etag: str) -> dict[str, str]:
    return {"ETag": etag, "Vary": "Authorization"}
