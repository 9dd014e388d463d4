"""``/v1/route`` and ``/v1/reward``."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from mor_core import tracing
from mor_core.errors import Conflict, Invalid, Unavailable
from mor_core.json_route import LargeRoute
from mor_core.openapi import problems
from mor_core.visibility import Scope, visible
from mor_core.wire import PromptOrigin, RewardExplanation

from mor_router.embedding import GateInput, embedding_for
from mor_router.mathematics import gate
from mor_router.mathematics.gate import NoClientAvailable
from mor_router.mathematics.group_fusion import blended_slopes, blended_weights, ood_score
from mor_router.mathematics.regional_slopes import influences
from mor_router.rewarding.group_batch import GroupOutcome, Unrewarded
from mor_router.routes.context import Running, Scorer, Service
from mor_router.schemas import ItemReward, RewardRequest, RewardResponse, RoutedClient, RouteRequest, RouteResponse

_NO_SCORES = {"raw": None, "standardised": None, "calibrated": None}

routes = APIRouter(prefix="/v1", tags=["rewards"], route_class=LargeRoute)


@routes.post("/route", summary="Weights for an input, explained", responses=problems(409))
async def route(request: RouteRequest, router: Running, caller: Service) -> RouteResponse:
    images = await router.rewarding.caller_rewards.images(caller, [request.messages], request.images)
    deadline_s = router.resources.settings.deadline_s
    try:
        with embedding_for(caller.name):
            async with asyncio.timeout(deadline_s):
                plan = await router.rewarding.pipeline.plan(
                    request.objective, PromptOrigin(request.domain, request.public)
                )
                objective_weights = await router.rewarding.gate_weights.of(
                    GateInput(request.messages, images), plan.gates, plan.weighted_clients
                )
    except TimeoutError as error:
        raise Unavailable(f"the input was not embedded in {deadline_s:g} s; send less, or try again later") from error
    except NoClientAvailable as error:
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
        clients=tuple(lines),
    )


@routes.post("/reward", summary="Fused rewards of groups of responses", responses=problems(409, 429))
async def reward(request: RewardRequest, router: Running, caller: Scorer, http: Request) -> RewardResponse:
    """Request the clients' scores and fuse them. An item without a quorum has status ``error`` and no rewards; 0 never
    stands for a missing score. Nothing is learned from these groups, and a failure counts in this caller's circuit
    of the client alone."""
    names = [item.item_id for item in request.items]
    if len(set(names)) != len(names):
        raise Invalid("item_id must be distinct within a request")
    rewards = router.rewarding.caller_rewards
    images = await rewards.images(caller, [item.messages for item in request.items], request.images)
    await rewards.take_quota(caller, sum(len(item.responses) for item in request.items))
    outcomes = await rewards.reward(
        caller,
        request.items,
        images,
        deadline_s=request.deadline_s,
        fusion=request.fusion,
        trace=http.headers.get(tracing.HEADER, ""),
    )
    records = router.clients.pool.records.values()
    withheld = {one.name for one in records if one.card is not None and one.card.distillation == "forbidden"}
    items = tuple(item_reward(outcome, withheld, caller.scope) for outcome in outcomes)
    return visible(RewardResponse(items=items), caller.scope, caller.name)


def item_reward(outcome: GroupOutcome, withheld: Collection[str] = (), scope: Scope = Scope.admin) -> ItemReward:
    """Return the outcome of one group in the shape of ``/v1/reward``.

    ``withheld``: clients whose single scores are left out, because their cards forbid training on them. A caller asks
    about inputs of its own here, as many as it likes, which is how a model is copied. Where one of them has weight, the
    others' scores are left out too: the rewards minus theirs would be what is withheld.
    """
    result = outcome.result
    explanation = {name: getattr(result, name) for name in RewardExplanation.model_fields}
    secret = set(withheld)
    if any(line.client in secret and line.weight for line in result.clients):
        secret = {line.client for line in result.clients}
    explanation["clients"] = tuple(
        line.model_copy(update=_NO_SCORES) if line.client in secret else line for line in result.clients
    )
    shared: dict[str, Any] = {**explanation, "item_id": outcome.item_id, "note": outcome.note}
    if isinstance(result, Unrewarded):
        return ItemReward(status="error", rewards=None, detail=outcome.problem_for(scope), entropy=0.0, **shared)
    return ItemReward(status="ok", rewards=result.rewards, detail=None, entropy=result.entropy, **shared)
