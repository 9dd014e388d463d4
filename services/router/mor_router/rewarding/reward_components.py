"""Components of the room ``rewarding``."""

from __future__ import annotations

from dataclasses import dataclass

from mor_router.clients.client_components import ClientComponents
from mor_router.objectives.objective_components import ObjectiveComponents
from mor_router.resources import Resources
from mor_router.rewarding.influence import InfluenceLog
from mor_router.rewarding.pipeline import RewardPipeline
from mor_router.rewarding.recent_scores import RecentScores
from mor_router.trust.trust_components import TrustComponents


@dataclass(frozen=True)
class RewardComponents:
    """Components that turn groups into rewards."""

    pipeline: RewardPipeline
    influences: InfluenceLog


def build_rewarding(
    resources: Resources, clients: ClientComponents, objectives: ObjectiveComponents, trust: TrustComponents
) -> RewardComponents:
    influences = InfluenceLog(resources.redis)
    pipeline = RewardPipeline(
        settings=resources.settings,
        pool=clients.pool,
        requester=clients.requester,
        reliability=clients.reliability,
        gate_resolver=objectives.gate_resolver,
        recent=RecentScores(resources.redis),
        influences=influences,
        honeypots=trust.honeypots,
        drift=trust.drift,
        disagreement=trust.disagreement,
        auditor=trust.auditor,
        embedder=resources.embedder,
    )
    return RewardComponents(pipeline=pipeline, influences=influences)
