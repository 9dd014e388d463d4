"""``/v1/route`` and ``/v1/reward``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from fastapi import APIRouter, Request
from mor_core import tracing
from mor_core.auth import Scope
from mor_core.errors import Conflict, Invalid
from mor_core.images import sha256
from mor_core.wire import Messages, image_hashes

from mor_router.embedding import GateInput
from mor_router.mathematics import gate
from mor_router.mathematics.fuse import beyond, combined
from mor_router.rewarding.client_scores import LESS_TRUSTED
from mor_router.rewarding.pipeline import Groups, Verdict
from mor_router.routes.context import ReaderOrClient, Running, ScorerOrClient, sees
from mor_router.schemas import ItemReward, RewardRequest, RewardResponse, RoutedClient, RouteRequest, RouteResponse

routes = APIRouter(prefix="/v1", tags=["rewards"])


@routes.post("/route", summary="Weights for an input, explained")
async def route(request: RouteRequest, router: Running, caller: ReaderOrClient) -> RouteResponse:
    _check_images([request.messages], request.images)
    now = await router.rewarder.round(request.objective)
    try:
        lenses = await router.rewarder.opinion(GateInput(request.messages, request.images), now.force, now.voters)
    except ValueError as error:
        if isinstance(error, Invalid):
            raise
        raise Conflict(str(error)) from error
    weights = combined(lenses)
    magnitude = {
        name: sum(lens.share * lens.weights.get(name, 0.0) * lens.slopes.get(name, 0.0) for lens in lenses)
        for name in weights
    }
    total = sum(magnitude.values())
    lines = [
        RoutedClient(
            client=name,
            asked=True,
            weight=weight,
            slope=magnitude[name] / weight if weight else 0.0,
            influence=magnitude[name] / total if total else None,
            reason=None,
        )
        for name, weight in weights.items()
    ]
    for name, record in now.records.items():
        if name in now.shadows:
            missing = now.stale.get(name, "not in the gate: fit again")
            reason = "on probation: asked in shadow" if record.state == "probation" else missing
            lines.append(RoutedClient(client=name, asked=True, weight=0, slope=None, influence=None, reason=reason))
        elif name not in weights:
            reason = LESS_TRUSTED if name in now.voters else f"{record.state}: {record.reason or 'no reason given'}"
            lines.append(RoutedClient(client=name, asked=False, weight=0, slope=None, influence=None, reason=reason))
    return RouteResponse(
        objectives=now.force.objectives,
        gate_version=now.force.version,
        note=now.force.note,
        entropy=float(gate.entropy(np.array(list(weights.values())))),
        ood_score=beyond(lenses),
        clients=tuple(line for line in lines if sees(caller, line.client)),
    )


@routes.post("/reward", summary="Fused rewards of groups of responses")
async def reward(request: RewardRequest, router: Running, caller: ScorerOrClient, http: Request) -> RewardResponse:
    """Request the clients' scores and fuse them. An item without a quorum has status ``error`` and no rewards; 0 never
    stands for a missing score. A client's own token shows its own line and no rewards: with one other client, the
    reward less its own part would reveal the other's scores."""
    names = [item.item_id for item in request.items]
    if len(set(names)) != len(names):
        raise Invalid("item_id must be distinct within a request")
    _check_images([item.messages for item in request.items], request.images)
    with tracing.span("reward", parent=http.headers.get(tracing.HEADER, ""), kind="server") as span:
        verdicts, _ = await router.rewarder.reward(
            Groups(request.items, request.images, dict.fromkeys(names, span.traceparent)),
            request.deadline_s or router.settings.deadline_s,
            fusion=request.fusion,
        )
    shown = [_shown(verdict, lambda name: sees(caller, name)) for verdict in verdicts]
    if caller.scope == Scope.client:
        shown = [item.model_copy(update={"rewards": None}) for item in shown]
    return RewardResponse(items=tuple(shown))


def _shown(verdict: Verdict, visible: Callable[[str], bool]) -> ItemReward:
    return ItemReward(
        item_id=verdict.item_id,
        status="error" if verdict.rewards is None else "ok",
        rewards=verdict.rewards,
        detail=verdict.problem,
        objectives=verdict.objectives,
        gate_version=verdict.gate_version,
        fusion=verdict.fusion,
        entropy=verdict.entropy,
        note=verdict.note,
        clients=tuple(score for score in verdict.clients if visible(score.client)),
    )


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
