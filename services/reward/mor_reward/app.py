"""HTTP app of the reward service: the reward contract ``mor.reward/1``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse
from mor_core import auth, tracing
from mor_core.errors import Overloaded, Unavailable
from mor_core.json_route import LargeRoute
from mor_core.missing_images import MissingImages
from mor_core.service import create_service
from mor_core.wire import Card, ScoreRequest, ScoreResponse
from pydantic import Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mor_reward import __version__, disclosure
from mor_reward.config import RewardSettings
from mor_reward.metrics import REQUESTS
from mor_reward.scoring_service import ScoringService, open_model

log = structlog.get_logger(__name__)

_DESCRIPTION = (
    "Scores responses to prompts with pictures. A score is in calibrated logits: the difference of two scores of one "
    "item is the log-odds that the first response is preferred."
)
_Router = Annotated[auth.Principal, Depends(auth.require(auth.Scope.service))]
_RESPONSES: dict[int | str, dict[str, object]] = {
    409: {
        "description": "The service does not hold these pictures; repeat the request with their bytes in 'images'.",
        "content": {"application/json": {"example": {"missing_images": ["9f86d081884c7d65…"]}}},
    },
    413: {"description": "The request exceeds a limit of the card."},
    422: {"description": "The request does not conform to the contract."},
    429: {"description": "The queue is full or the deadline is too close; see Retry-After."},
    503: {"description": "The deadline passed, or the service is stopping; see Retry-After."},
}


class CountScoreRequests:
    """ASGI middleware that counts the responses of ``/v1/score`` by status."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/score":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                REQUESTS.labels(status=message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted)


async def _missing(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MissingImages)
    return JSONResponse({"missing_images": error.missing}, 409)


def create_app(settings: RewardSettings, model: ScoringService | None = None) -> FastAPI:
    """Build the app. It loads the model, so that a model that cannot be loaded stops the start.

    ``model``: a model that is served instead of the one that ``settings`` name.

    Raises:
        Invalid: the model does not exist or cannot be loaded.
    """
    model = model or open_model(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with model.open():
            yield

    app = create_service(
        "MoR reward service",
        settings,
        lifespan,
        {"model": model.problem},
        version=__version__,
        description=_DESCRIPTION,
    )
    app.state.model = model
    app.add_middleware(CountScoreRequests)
    app.add_exception_handler(MissingImages, _missing)

    large = APIRouter(route_class=LargeRoute)

    @large.post("/v1/score", responses=_RESPONSES, summary="Score groups of responses")
    async def score(
        body: ScoreRequest,
        request: Request,
        caller: _Router,
        x_mor_deadline_ms: Annotated[
            float | None,
            Header(description="Milliseconds that the caller waits for the response, from the start of the request."),
            Field(ge=0),
        ] = None,
    ) -> ScoreResponse:
        service: ScoringService = request.app.state.model
        with tracing.span("answer", parent=request.headers.get(tracing.HEADER, ""), kind="server") as span:
            deadline_ms = disclosure.whole_steps(x_mor_deadline_ms, settings.answer_step_ms)
            async with disclosure.held_to_step(settings.answer_step_ms):
                try:
                    answer = await service.score(body, deadline_ms, caller.name)
                except Unavailable as error:
                    if not isinstance(error, Overloaded):
                        log.warning("a request was not scored", caller=caller.name, reason=str(error))
                    if settings.disclosure == "full":
                        raise
                    raise disclosure.coarse_refusal(error) from error
            span.set(model=answer.model.name, model_version=answer.model.version, items=len(answer.items))
            if settings.disclosure == "full":
                return answer
            return answer.model_copy(update={"model": disclosure.model_for(answer.model, caller.name)})

    @app.get("/v1/card", summary="Get the model's card")
    async def card(request: Request, caller: _Router) -> Card:
        service: ScoringService = request.app.state.model
        return service.card if settings.disclosure == "full" else disclosure.coarse_card(service.card, caller.name)

    app.include_router(large)
    return app
