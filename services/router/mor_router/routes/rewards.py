"""``/v1/route`` and ``/v1/reward``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from mor_core import tracing
from mor_core.auth import Scope
from mor_core.errors import Conflict, Invalid
from mor_core.images import sha256
from mor_core.openapi import problems
from mor_core.wire import Messages, RewardExplanation, image_hashes

from mor_router.embedding import GateInput
from mor_router.mathematics import gate
from mor_router.mathematics.group_fusion import blended_slopes, blended_weights, ood_score
from mor_router.mathematics.regional_slopes import influences
from mor_router.rewarding.pipeline import GroupBatch, GroupOutcome, Unrewarded
from mor_router.routes.context import ReaderOrClient, Running, ScorerOrClient, may_see
from mor_router.schemas import ItemReward, RewardRequest, RewardResponse, RoutedClient, RouteRequest, RouteResponse

routes = APIRouter(prefix="/v1", tags=["rewards"])


@routes.post("/route", summary="Weights for an input, explained", responses=problems(409))
async def route(request: RouteRequest, router: Running, caller: ReaderOrClient) -> RouteResponse:
    _check_images([request.messages], request.images)
    plan = await router.rewarding.pipeline.plan(request.objective)
    try:
        objective_weights = await router.rewarding.pipeline.gate_weights(
            GateInput(request.messages, request.images), plan.gates, plan.weighted_clients
        )
    except ValueError as error:
        if isinstance(error, Invalid):
            raise
        raise Conflict(str(error)) from error
    weights = blended_weights(objective_weights)
    slopes = blended_slopes(objective_weights)
    shares = influences(np.array([list(weights.values())]), np.array([list(slopes.values())]))[0]
    lines = [
        RoutedClient(
            client=name,
            asked=True,
            weight=weight,
            slope=slopes[name],
            influence=float(share) if shares.any() else None,
            reason=None,
        )
        for (name, weight), share in zip(weights.items(), shares, strict=True)
    ]
    lines += [
        RoutedClient(
            client=name,
            asked=name in plan.shadows,
            weight=0,
            slope=None,
            influence=None,
            reason=plan.reason_without_weight(name),
        )
        for name in plan.records
        if name not in weights
    ]
    return RouteResponse(
        objectives=plan.gates.objectives,
        gate_version=plan.gates.version,
        note=plan.gates.note,
        entropy=float(gate.entropy(np.array(list(weights.values())))),
        ood_score=ood_score(objective_weights),
        clients=tuple(line for line in lines if may_see(caller, line.client)),
    )


@routes.post("/reward", summary="Fused rewards of groups of responses", responses=problems(409))
async def reward(request: RewardRequest, router: Running, caller: ScorerOrClient, http: Request) -> RewardResponse:
    """Request the clients' scores and fuse them. An item without a quorum has status ``error`` and no rewards; 0 never
    stands for a missing score. A client's own token shows its own line and no rewards: with one other client, the
    reward less its own part would reveal the other's scores."""
    names = [item.item_id for item in request.items]
    if len(set(names)) != len(names):
        raise Invalid("item_id must be distinct within a request")
    _check_images([item.messages for item in request.items], request.images)
    with tracing.span("reward", parent=http.headers.get(tracing.HEADER, ""), kind="server") as span:
        outcomes, _ = await router.rewarding.pipeline.reward(
            GroupBatch(request.items, request.images, dict.fromkeys(names, span.traceparent)),
            request.deadline_s or router.resources.settings.deadline_s,
            fusion=request.fusion,
        )
    shown = [_shown(outcome, lambda name: may_see(caller, name)) for outcome in outcomes]
    if caller.scope == Scope.client:
        shown = [item.model_copy(update={"rewards": None}) for item in shown]
    return RewardResponse(items=tuple(shown))


def _shown(outcome: GroupOutcome, visible: Callable[[str], bool]) -> ItemReward:
    result = outcome.result
    explanation = {name: getattr(result, name) for name in RewardExplanation.model_fields}
    explanation["clients"] = tuple(line for line in result.clients if visible(line.client))
    shared: dict[str, Any] = {**explanation, "item_id": outcome.item_id, "note": outcome.note}
    if isinstance(result, Unrewarded):
        return ItemReward(status="error", rewards=None, detail=result.problem, entropy=0.0, **shared)
    return ItemReward(status="ok", rewards=result.rewards, detail=None, entropy=result.entropy, **shared)


def _check_images(conversations: Iterable[Messages], images: Mapping[str, bytes]) -> None:
    """Check that each named image was sent, under the hash of its bytes.

    Raises:
        Invalid: an image is missing, or has another hash.
    """
    for messages in conversations:
        for digest in image_hashes(messages):
            if digest not in images:
                raise Invalid(f"image {digest[:12]} is named by a message and missing in 'images'; send it in base64")
    for digest, content in images.items():
        if sha256(content) != digest:
            raise Invalid(f"image {digest[:12]}: its bytes have SHA-256 {sha256(content)[:12]}; name it by that hash")
