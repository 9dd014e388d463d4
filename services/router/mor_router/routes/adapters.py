"""``/v1/adapters``: rewards in the protocols of other trainers, which send responses one by one or in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request, Response
from mor_core.auth import Principal
from mor_core.json_route import OWN_THREAD_BYTES, LargeRoute
from mor_core.openapi import problems
from mor_core.tasks import in_thread

from mor_router.rewarding.coalescer import GroupForm, PromptedResponse
from mor_router.rewarding.openrlhf_shapes import OpenRLHFForm, OpenRLHFRequest, OpenRLHFResponse
from mor_router.rewarding.verify_shapes import VerifyRequest, VerifyResponse
from mor_router.routes.context import Running, Scorer
from mor_router.wiring import Router

T = TypeVar("T")

routes = APIRouter(prefix="/v1/adapters", tags=["adapters"], route_class=LargeRoute)


@routes.post("/openrlhf", summary="Rewards for OpenRLHF's --remote_rm_url", responses=problems(429))
async def openrlhf(
    request: OpenRLHFRequest, form: Annotated[OpenRLHFForm, Query()], router: Running, caller: Scorer
) -> OpenRLHFResponse:
    """Gather the responses to each prompt, of this call and others, into groups, and return their fused rewards. A
    group that has no reward, or is not complete in time, is 503; a response that stays alone is 422."""
    rewards = await _rewards(router, caller, await in_thread(request.responses, form), form)
    return OpenRLHFResponse(rewards=tuple(rewards), scores=tuple(rewards))


@routes.post("/verify", summary="Reward for NeMo Gym's /verify", response_model=VerifyResponse, responses=problems(429))
async def verify(
    request: VerifyRequest, form: Annotated[GroupForm, Query()], router: Running, caller: Scorer, http: Request
) -> Response:
    """Gather the responses to one prompt, of this call and others, into a group, and return the request with the fused
    reward of its response. Failures are those of ``/v1/adapters/openrlhf``."""
    (reward,) = await _rewards(router, caller, [await _worked_out(http, request.prompted)], form)
    body = await _worked_out(http, partial(request.rewarded, reward))
    return Response(body, media_type="application/json")  # not by FastAPI, which would copy the request twice more


async def _worked_out(http: Request, work: Callable[[], T]) -> T:
    """Return the result of ``work`` on the body of ``http``, which is done in a thread where it may take long."""
    length = http.headers.get("content-length", "")
    is_small = length.isdecimal() and int(length) <= OWN_THREAD_BYTES
    return work() if is_small else await in_thread(work)


async def _rewards(
    router: Router, caller: Principal, responses: Sequence[PromptedResponse], form: GroupForm
) -> list[float]:
    rewards = router.rewarding.caller_rewards
    shown = {digest: content for response in responses for digest, content in response.images.items()}
    await rewards.images(caller, [response.messages for response in responses], shown, hashed=True)
    await rewards.take_quota(caller, len(responses))
    return await router.rewarding.coalescer.reward(caller, responses, form)
