"""Everything that a router process holds, put together once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import torch
from mor_core.errors import Invalid
from mor_core.streams import connect
from mor_core.tasks import stop
from redis.asyncio import Redis

from mor_router.audit import AuditLog
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.enrolment import Enroller
from mor_router.clients.honeypot_scores import HoneypotScores
from mor_router.clients.pool import ClientPool
from mor_router.clients.registry import ClientRegistry
from mor_router.clients.scoring import ScoreRequester
from mor_router.clients.secret_store import SecretStore
from mor_router.config import RouterSettings
from mor_router.embedding import Embedder, build_embedder
from mor_router.learning.gate_fitter import GateFitter
from mor_router.learning.labels import LabellerStore
from mor_router.learning.online_refit import OnlineRefit
from mor_router.objectives.active_gates import GateResolver
from mor_router.objectives.anchor_holdout import AnchorHoldout
from mor_router.objectives.anchor_scores import AnchorScorer
from mor_router.objectives.gates import GateStore
from mor_router.objectives.objective_store import ObjectiveStore
from mor_router.reward_stage import RewardStage
from mor_router.rewarding.influence import InfluenceLog
from mor_router.rewarding.pipeline import RewardPipeline
from mor_router.rewarding.recent_scores import RecentScores
from mor_router.trust.answer_reconciliation import AnswerReconciliation
from mor_router.trust.disagreement_monitor import DisagreementMonitor
from mor_router.trust.drift import Drift
from mor_router.trust.honeypots import Honeypots
from mor_router.trust.quarantine import Quarantine

if TYPE_CHECKING:
    from mor_router.clients.discovery import Discovery

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Router:
    settings: RouterSettings
    redis: Redis
    audit: AuditLog
    registry: ClientRegistry
    pool: ClientPool
    enroller: Enroller
    objectives: ObjectiveStore
    gates: GateStore
    gate_resolver: GateResolver
    embedder: Embedder
    gate_fitter: GateFitter
    labellers: LabellerStore
    online_refit: OnlineRefit
    reward_pipeline: RewardPipeline
    influences: InfluenceLog
    honeypots: Honeypots
    reward_stage: RewardStage

    async def ready(self) -> str | None:
        """What is missing for this router to do its work. Clients are not: they enrol at a router that is ready."""
        await self.redis.ping()
        return None if self.pool.loaded else "the registry of clients has not been read yet"


@asynccontextmanager
async def running(settings: RouterSettings, egress: EgressPolicy) -> AsyncIterator[Router]:
    """A router at work until the body ends.

    Raises:
        Invalid: no usable ``MOR_SECRET_KEY``, or an embedding model that cannot be loaded.
    """
    secret_store = SecretStore(settings.secret_key)
    torch.set_num_threads(settings.torch_threads)
    embedder = await asyncio.to_thread(
        build_embedder, settings.embed_text_model, settings.embed_image_model, settings.embed_cache
    )
    redis = connect(settings)
    audit = AuditLog(settings.audit_log)
    registry, objectives, gates = ClientRegistry(redis), ObjectiveStore(redis), GateStore(redis)
    pool = ClientPool(registry, secret_store, settings, egress)
    requester = ScoreRequester(pool)
    gate_resolver = GateResolver(objectives, gates, embedder, settings.objective_likeness)
    influences = InfluenceLog(redis)
    honeypot_scores = HoneypotScores(redis)
    holdout = AnchorHoldout(redis, settings.anchor_reserve if settings.anchor_share else 0.0)
    drift = Drift(
        registry=registry,
        objectives=objectives,
        gate_resolver=gate_resolver,
        honeypot_scores=honeypot_scores,
        audit=audit,
        false_alarm=settings.drift_false_alarm,
    )
    honeypots = Honeypots(
        redis=redis,
        objectives=objectives,
        holdout=holdout,
        requester=requester,
        honeypot_scores=honeypot_scores,
        drift=drift,
        embedder=embedder,
        share=settings.anchor_share,
    )
    reward_pipeline = RewardPipeline(
        settings=settings,
        pool=pool,
        requester=requester,
        gate_resolver=gate_resolver,
        recent=RecentScores(redis),
        influences=influences,
        honeypots=honeypots,
        drift=drift,
        disagreement=DisagreementMonitor(audit, settings.drift_false_alarm),
        embedder=embedder,
    )
    gate_fitter = GateFitter(
        redis=redis,
        settings=settings,
        registry=registry,
        pool=pool,
        objectives=objectives,
        gates=gates,
        embedder=embedder,
        scorer=AnchorScorer(redis, pool, requester, settings.deadline_s),
        holdout=holdout,
        reconciliation=AnswerReconciliation(honeypot_scores, drift),
        quarantine=Quarantine(redis, registry, audit),
        audit=audit,
    )
    labellers = LabellerStore(redis, secret_store, settings, egress, pool)
    online_refit = OnlineRefit(
        redis=redis,
        settings=settings,
        objectives=objectives,
        gates=gates,
        labellers=labellers,
        gate_fitter=gate_fitter,
        embedder=embedder,
        audit=audit,
    )
    router = Router(
        settings=settings,
        redis=redis,
        audit=audit,
        registry=registry,
        pool=pool,
        enroller=Enroller(
            registry=registry,
            pool=pool,
            secret_store=secret_store,
            egress=egress,
            honeypot_scores=honeypot_scores,
            audit=audit,
        ),
        objectives=objectives,
        gates=gates,
        gate_resolver=gate_resolver,
        embedder=embedder,
        gate_fitter=gate_fitter,
        labellers=labellers,
        online_refit=online_refit,
        reward_pipeline=reward_pipeline,
        influences=influences,
        honeypots=honeypots,
        reward_stage=RewardStage(redis, settings, pool, reward_pipeline),
    )
    await pool.try_refresh()  # a queue server that starts later than this router is waited for, in /readyz
    work = [pool.keep_refreshed(), pool.keep_probing(), *([router.reward_stage.work()] if settings.worker else [])]
    if settings.kubernetes_namespaces:
        work.append(_discovery(router, egress, secret_store).run())
    if settings.refit_interval_s and settings.policy_url:
        work.append(online_refit.follow())
    tasks = [asyncio.create_task(part) for part in work]
    try:
        yield router
    finally:
        await stop(tasks)
        await honeypots.close()
        await requester.close()
        await pool.close()
        await redis.aclose()


def _discovery(router: Router, egress: EgressPolicy, secret_store: SecretStore) -> Discovery:
    """
    Raises:
        Invalid: the Kubernetes client is not installed.
    """
    try:
        from mor_router.clients.discovery import Discovery
    except ImportError as error:
        raise Invalid("MOR_KUBERNETES_NAMESPACES is set: install mor-router[kubernetes], or leave it out") from error
    return Discovery(
        settings=router.settings,
        redis=router.redis,
        registry=router.registry,
        enroller=router.enroller,
        egress=egress,
        secret_store=secret_store,
    )
