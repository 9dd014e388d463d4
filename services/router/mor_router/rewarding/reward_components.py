"""Components of the room ``rewarding``."""

from __future__ import annotations

from dataclasses import dataclass

from mor_router.clients.client_components import ClientComponents
from mor_router.clients.minute_quota import MinuteQuota
from mor_router.objectives.objective_components import ObjectiveComponents
from mor_router.resources import Resources
from mor_router.rewarding.caller_rewards import CallerRewards
from mor_router.rewarding.coalescer import Coalescer
from mor_router.rewarding.gate_weights import GateWeights
from mor_router.rewarding.influence import InfluenceLog
from mor_router.rewarding.pipeline import RewardPipeline
from mor_router.rewarding.recent_scores import RecentScores
from mor_router.rewarding.run_monitor import RunMonitor
from mor_router.trust.trust_components import TrustComponents


@dataclass(frozen=True)
class RewardComponents:
    """Components that turn groups into rewards."""

    pipeline: RewardPipeline
    gate_weights: GateWeights
    influences: InfluenceLog
    caller_rewards: CallerRewards
    coalescer: Coalescer


def build_rewarding(
    resources: Resources, clients: ClientComponents, objectives: ObjectiveComponents, trust: TrustComponents
) -> RewardComponents:
    settings = resources.settings
    influences = InfluenceLog(resources.redis)
    gate_weights = GateWeights(resources.embedder, settings.most_clients)
    monitor = RunMonitor(
        pool=clients.pool,
        reliability=clients.reliability,
        influences=influences,
        honeypots=trust.honeypots,
        drift=trust.drift,
        disagreement=trust.disagreement,
        auditor=trust.auditor,
        group_retry_s=settings.group_retry_s,
    )
    pipeline = RewardPipeline(
        settings=settings,
        pool=clients.pool,
        requester=clients.requester,
        gate_resolver=objectives.gate_resolver,
        gate_weights=gate_weights,
        recent=RecentScores(resources.redis),
        honeypots=trust.honeypots,
        monitor=monitor,
    )
    caller_rewards = CallerRewards(settings, pipeline, MinuteQuota(resources.redis))
    return RewardComponents(
        pipeline=pipeline,
        gate_weights=gate_weights,
        influences=influences,
        caller_rewards=caller_rewards,
        coalescer=Coalescer(caller_rewards, most_waiting=settings.coalesced_responses),
    )
