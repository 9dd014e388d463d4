"""HTTP application of the rollout service: factory and routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from mor_core.auth import Principal, Scope, require
from mor_core.health import ReadyCheck
from mor_core.json_route import LargeRoute
from mor_core.service import create_service
from sse_starlette import EventSourceResponse
from starlette.responses import Response

from mor_rollout import __version__, weight_receiver
from mor_rollout.chat.completions import Completions
from mor_rollout.chat.openai_schema import POLICY, ChatRequest, ChatResponse
from mor_rollout.config import RolloutSettings
from mor_rollout.rollout_service import RolloutService
from mor_rollout.rollout_status import ModelList, RolloutStatus

_DESCRIPTION = """Samples groups of responses from the current policy for the runs announced in Redis, swaps its
weights in place, and serves chat completions from it."""


def create_app(settings: RolloutSettings) -> FastAPI:
    """Create the service. Its lifespan owns the engine and the rollout stage."""
    service = RolloutService(settings)
    completions = Completions(settings, service)
    checks: dict[str, ReadyCheck] = {"engine": service.ready, "streams": service.stream_server}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.close()

    app = create_service(
        "MoR rollout",
        settings,
        lifespan,
        checks,
        version=__version__,
        description=_DESCRIPTION,
        host_info=service.host_info,
        start_checks={"engine": service.started},
    )
    app.state.service = service
    large = APIRouter(route_class=LargeRoute)
    if settings.weight_transfer != "http":
        app.include_router(weight_receiver.router)

    @app.get("/v1/status", summary="Policy in use and state of the engine", tags=["status"])
    async def status(_: Annotated[Principal, Depends(require(Scope.viewer, Scope.service))]) -> RolloutStatus:
        return RolloutStatus(**service.status())

    @app.get("/v1/models", summary="Models for chat completions: the current policy", tags=["chat"])
    async def models(_: Annotated[Principal, Depends(require(Scope.viewer, Scope.service))]) -> ModelList:
        return ModelList.model_validate(
            {"object": "list", "data": [{"id": POLICY, "object": "model", "owned_by": "mor", "root": settings.model}]}
        )

    @large.post(
        "/v1/chat/completions",
        summary="Chat completion on the current policy, OpenAI-compatible",
        description="With `stream` the response is a stream of server-sent events that ends with `[DONE]`. "
        "Requests with fields of the OpenAI API that are not listed receive 422.",
        response_model=ChatResponse,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
            404: {"description": "Unknown model."},
            503: {"description": "Not ready, or too many chat completions at once; see Retry-After."},
        },
        tags=["chat"],
    )
    async def chat(request: ChatRequest, caller: Annotated[Principal, Depends(require(Scope.service))]) -> Any:
        await completions.check(request)
        if request.stream:
            events: Response = EventSourceResponse(completions.events(request, caller.name), sep="\n")
            return events
        return await completions.complete(request, caller.name)

    app.include_router(large)
    return app
