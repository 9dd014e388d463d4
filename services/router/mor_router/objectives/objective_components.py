"""Components of the room ``objectives``."""

from __future__ import annotations

from dataclasses import dataclass

from mor_router.clients.client_components import ClientComponents
from mor_router.objectives.active_gates import GateResolver
from mor_router.objectives.anchor_holdout import AnchorHoldout
from mor_router.objectives.anchor_scores import AnchorScorer
from mor_router.objectives.gates import GateStore
from mor_router.objectives.objective_store import ObjectiveStore
from mor_router.resources import Resources


@dataclass(frozen=True)
class ObjectiveComponents:
    """Components that store objectives, anchors and gates, and look up the active gates."""

    store: ObjectiveStore
    gates: GateStore
    gate_resolver: GateResolver
    holdout: AnchorHoldout
    anchor_scorer: AnchorScorer


def build_objectives(resources: Resources, clients: ClientComponents) -> ObjectiveComponents:
    settings, redis = resources.settings, resources.redis
    store, gates = ObjectiveStore(redis), GateStore(redis)
    return ObjectiveComponents(
        store=store,
        gates=gates,
        gate_resolver=GateResolver(store, gates, resources.embedder, settings.objective_likeness),
        # Without honeypots nobody would ever score held-out anchors.
        holdout=AnchorHoldout(redis, settings.anchor_reserve if settings.anchor_share else 0.0),
        anchor_scorer=AnchorScorer(redis, clients.pool, clients.requester, settings.deadline_s),
    )
