"""Components of the room ``clients``, and their background work: refreshes and probes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mor_core.background import in_background
from mor_core.token_file import TokenFile

from mor_router.clients.egress import EgressPolicy
from mor_router.clients.enrolment import Enroller
from mor_router.clients.enrolment_quota import EnrolmentQuota
from mor_router.clients.former_distrust import FormerDistrust
from mor_router.clients.honeypot_scores import HoneypotScores
from mor_router.clients.pool import ClientPool
from mor_router.clients.registry import ClientRegistry
from mor_router.clients.reliability import Reliability
from mor_router.clients.scoring import ScoreRequester
from mor_router.clients.secret_store import SecretStore
from mor_router.resources import Resources


@dataclass(frozen=True)
class ClientComponents:
    """Components that register clients and call them."""

    egress: EgressPolicy
    secret_store: SecretStore
    registry: ClientRegistry
    pool: ClientPool
    requester: ScoreRequester
    reliability: Reliability
    honeypot_scores: HoneypotScores
    enroller: Enroller
    enrolment_quota: EnrolmentQuota


@asynccontextmanager
async def open_clients(
    resources: Resources, secret_store: SecretStore, egress: EgressPolicy, tokens: TokenFile
) -> AsyncIterator[ClientComponents]:
    """Connect to the enrolled clients, and keep connections and cards up to date until the body ends."""
    registry, honeypot_scores = ClientRegistry(resources.redis), HoneypotScores(resources.redis)
    pool = ClientPool(registry, secret_store, resources.settings, egress)
    quota = EnrolmentQuota(resources.redis, resources.settings, egress)
    clients = ClientComponents(
        egress=egress,
        secret_store=secret_store,
        registry=registry,
        pool=pool,
        requester=ScoreRequester(pool),
        reliability=Reliability(registry, pool, resources.audit, resources.settings),
        honeypot_scores=honeypot_scores,
        enroller=Enroller(
            registry=registry,
            pool=pool,
            secret_store=secret_store,
            egress=egress,
            audit=resources.audit,
            tokens=tokens,
            service_token=resources.settings.service_token,
            quota=quota,
            former=FormerDistrust(resources.redis),
            unknown_asks=resources.settings.enrolment_asks,
        ),
        enrolment_quota=quota,
    )
    await pool.try_refresh()  # without Redis the router starts all the same, and is ready once Redis answers
    try:
        async with in_background(pool.keep_refreshed, pool.keep_probing, others=[clients.reliability.keep_reviewing]):
            yield clients
    finally:
        await clients.requester.close()
        await pool.close()
